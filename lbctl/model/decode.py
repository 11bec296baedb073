"""From raw JSON bytes, or parsed YAML, to records of the model; failures name object and field.

An object as a whole takes the fast way. Where that fails, `lenient.py` reads what is good of it, so
that a record comes with a remark about the rest; only what has no name, or whose heart cannot be
read, is an error. Nothing but `ObjectError` is ever raised, whatever the bytes are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from lbctl.errors import ObjectError
from lbctl.fieldnames import explain
from lbctl.model.fields import InvalidField, Remarks, shortened
from lbctl.model.lenient import UNREADABLE, loose, repaired
from lbctl.model.records import EndpointSlice, Node, ObjectKey, Service
from lbctl.model.wire import Metadata, Whole, Wire, WireEndpointSlice, WireService
from lbctl.model.wirenode import WireNode

Record = TypeVar("Record", covariant=True)
M = TypeVar("M")
W = TypeVar("W")

_Json = dict[str, object]
_DEFAULT: Final = "default"  # the namespace of what names none
_EVENTS = ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR")


class WireObject(Protocol[Record]):
    """What every type of `wire.py` that stands for a whole object can do."""

    @property
    def metadata(self) -> Metadata: ...

    @property
    def kind(self) -> str: ...

    @property
    def api_version(self) -> str: ...

    def is_bare(self) -> bool: ...

    def to_model(self, namespace: str, remarks: Remarks) -> Record: ...


class Changed(msgspec.Struct, Generic[M], frozen=True, gc=False):
    """An object as it now is (ADDED or MODIFIED). `remark` says which part of it was wrong."""

    object: M
    resource_version: str
    remark: str = ""


class Deleted(msgspec.Struct, frozen=True, gc=False):
    """An object is gone."""

    key: ObjectKey
    resource_version: str


class Bookmark(msgspec.Struct, frozen=True, gc=False):
    """Nothing happened up to this version."""

    resource_version: str


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The server ends the watch; `code` is an HTTP status, 410 if the version is too old."""

    code: int
    message: str


class Malformed(msgspec.Struct, frozen=True, gc=False):
    """An object that does not decode. Its name is empty where even that was unreadable."""

    key: ObjectKey
    message: str
    resource_version: str


Event = Changed[M] | Deleted | Bookmark | Refused | Malformed


class Page(msgspec.Struct, Generic[M], frozen=True, gc=False):
    """One page of a list. `malformed` are the items that do not decode, `remarks` say what was
    wrong with parts of others."""

    objects: list[M]
    malformed: list[Malformed]
    remarks: dict[ObjectKey, str]
    resource_version: str
    next: str  # the `continue` token; empty on the last page


class _WireStatus(Wire):
    code: int = 0
    message: str = ""
    reason: str = ""


class _OnlyMetadata(Whole, kw_only=True):
    """Of deleted objects, and of bookmarks."""


class _Added(msgspec.Struct, Generic[W], tag_field="type", tag="ADDED", gc=False):
    object: W


class _Modified(msgspec.Struct, Generic[W], tag_field="type", tag="MODIFIED", gc=False):
    object: W


class _Deleted(msgspec.Struct, tag_field="type", tag="DELETED", gc=False):
    object: _OnlyMetadata


class _Bookmark(msgspec.Struct, tag_field="type", tag="BOOKMARK", gc=False):
    object: _OnlyMetadata


class _Error(msgspec.Struct, tag_field="type", tag="ERROR", gc=False):
    object: _WireStatus


class _ListMetadata(Wire):
    resource_version: str = ""
    next: str = msgspec.field(default="", name="continue")


class _List(Wire, Generic[W]):
    metadata: _ListMetadata
    kind: str = ""
    api_version: str = ""
    message: str = ""  # of a Status, which is what a server sends for a list it cannot give
    items: list[W] | msgspec.UnsetType | None = msgspec.UNSET


class Kind(Generic[M]):
    """One kind of object: its decoders, built once.

    `name` and `api_version` are as in the API, `namespaced` says whether its objects live in
    namespaces.
    """

    def __init__(
        self, name: str, api_version: str, wire: type[WireObject[M]], *, namespaced: bool = True
    ) -> None:
        self.name = name
        self.api_version = api_version
        self.namespaced = namespaced
        self._wire = wire
        self._object = msgspec.json.Decoder(wire)
        # The types are parameters here, which a type checker cannot follow into msgspec.
        generic: Any = wire
        self._list = msgspec.json.Decoder(_List[generic])
        self._raw_list = msgspec.json.Decoder(_List[msgspec.Raw])
        self._event = msgspec.json.Decoder(
            _Added[generic] | _Modified[generic] | _Deleted | _Bookmark | _Error
        )

    def decode(
        self, data: bytes | msgspec.Raw, namespace: str = "default", remarks: Remarks | None = None
    ) -> M:
        """One object from JSON. Objects without a namespace get `namespace`. What is wrong with
        parts of it goes to `remarks`. Raises ObjectError if it cannot be had at all."""
        noted = Remarks() if remarks is None else remarks
        return self._model(self._of_json(data, namespace, noted), namespace, noted)

    def convert(
        self, value: object, namespace: str = "default", remarks: Remarks | None = None
    ) -> M:
        """The same from parsed YAML."""
        noted = Remarks() if remarks is None else remarks
        return self._model(self._of_value(value, namespace, noted), namespace, noted)

    def decode_list(self, data: bytes) -> Page[M]:
        """A list as the API returns it. Raises ObjectError if it is no list of this kind."""
        try:
            decoded = self._list.decode(data)
        except UNREADABLE as error:
            return self._repaired_list(data, error)
        return self._page(decoded, lambda item, _: item)

    def decode_event(self, line: bytes) -> Event[M]:
        """One line of a watch. Raises ObjectError if it is no event of this kind."""
        try:
            event = self._event.decode(line)
        except UNREADABLE as error:
            return self._repaired_event(line, error)
        body = event.object
        if isinstance(event, _Error):
            return Refused(body.code, body.message or body.reason)
        self._check_kind(body.kind, body.api_version)
        if isinstance(event, _Deleted | _Bookmark):
            return self._end_of(body, deleted=isinstance(event, _Deleted))
        return self._changed(body, Remarks())

    # Objects.

    def _of_json(
        self, data: bytes | msgspec.Raw, namespace: str, remarks: Remarks
    ) -> WireObject[M]:
        try:
            return self._object.decode(data)
        except UNREADABLE as error:
            try:
                value = loose(data)
            except ObjectError:
                raise self._explain(error, None, namespace) from error
        return self._of_value(value, namespace, remarks)

    def _of_value(self, value: object, namespace: str, remarks: Remarks) -> WireObject[M]:
        try:
            return msgspec.convert(value, self._wire)
        except (*UNREADABLE, OverflowError):
            try:
                return repaired(value, self._wire, remarks)
            except InvalidField as error:
                raise self._explain(error, value, namespace) from error

    def _model(self, wire: WireObject[M], namespace: str, remarks: Remarks) -> M:
        try:
            return wire.to_model(namespace, remarks)
        except InvalidField as error:
            raise self._explain(error, _named(wire), namespace) from error

    # Lists.

    def _repaired_list(self, data: bytes, error: Exception) -> Page[M]:
        """Item by item; `error` says why that has to be."""
        try:
            raw = self._raw_list.decode(data)
        except UNREADABLE:
            try:
                whole = msgspec.convert(loose(data), _List[Any])
            except (ObjectError, *UNREADABLE) as worse:
                why = worse if isinstance(worse, msgspec.ValidationError) else error
                message = f"{self.name}List: {_reason(why)}"
                raise ObjectError(message, ("", "")) from worse
            return self._page(whole, lambda item, noted: self._of_value(item, _DEFAULT, noted))
        return self._page(raw, lambda item, noted: self._of_json(item, _DEFAULT, noted))

    def _page(self, decoded: _List[W], read: Callable[[W, Remarks], WireObject[M]]) -> Page[M]:
        self._check_list(decoded)
        meta = decoded.metadata
        page: Page[M] = Page([], [], {}, meta.resource_version, meta.next)
        for item in decoded.items or ():
            remarks = Remarks()
            try:
                wire = read(item, remarks)
                self._check_kind(wire.kind, wire.api_version)
                record = self._complete(wire, remarks)
            except ObjectError as error:
                page.malformed.append(Malformed(ObjectKey(*error.key), error.message, ""))
                continue
            page.objects.append(record)
            if remarks:
                page.remarks[self._key(wire.metadata)] = self._said(_named(wire), remarks)
        return page

    def _check_list(self, found: _List[W]) -> None:
        """Whether it is what was asked for. Raises ObjectError."""
        wanted = f"{self.name}List"
        if (found.kind, found.api_version) != (wanted, self.api_version):
            what = f"{found.kind or '(no kind)'} of {found.api_version or '(no apiVersion)'}"
            said = f": {found.message}" if found.message else ""
            message = f"expected {wanted} of {self.api_version}, got {what}{said}"
        elif not found.metadata.resource_version:
            message = f"{wanted}: metadata.resourceVersion is missing"
        elif found.items is msgspec.UNSET:
            message = f"{wanted}: items are missing"
        else:
            return
        raise ObjectError(shortened(message), ("", ""))

    # Events.

    def _changed(self, wire: WireObject[M], remarks: Remarks) -> Changed[M] | Malformed:
        version = wire.metadata.resource_version
        try:
            record = self._complete(wire, remarks)
        except ObjectError as error:
            return Malformed(ObjectKey(*error.key), error.message, version)
        return Changed(record, version, self._said(_named(wire), remarks) if remarks else "")

    def _end_of(self, body: Whole, *, deleted: bool) -> Deleted | Bookmark:
        meta = body.metadata
        if not deleted:
            return Bookmark(meta.resource_version)
        if not meta.name:
            raise self._no_event("a deleted object without a name")
        return Deleted(self._key(meta), meta.resource_version)

    def _repaired_event(self, line: bytes, error: Exception) -> Event[M]:
        """The event read leniently; `error` says why that has to be."""
        try:
            event = loose(line)
        except ObjectError:
            raise self._no_event(_reason(error)) from error
        kind, body = (
            (event.get("type"), event.get("object")) if isinstance(event, dict) else ("", 0)
        )
        if not isinstance(body, dict) or kind not in _EVENTS:
            raise self._no_event(_reason(error)) from error
        remarks = Remarks()
        try:
            if kind == "ERROR":
                status = repaired(body, _WireStatus, remarks)
                return Refused(status.code, status.message or status.reason)
            self._check_kind(body.get("kind", ""), body.get("apiVersion", ""))
            if kind in ("DELETED", "BOOKMARK"):
                meta = repaired(body, _OnlyMetadata, remarks)
                return self._end_of(meta, deleted=kind == "DELETED")
            return self._changed(repaired(body, self._wire, remarks), remarks)
        except InvalidField as fault:
            if kind not in ("ADDED", "MODIFIED"):
                raise self._no_event(str(fault)) from fault
            explained = self._explain(fault, body, _DEFAULT)
            version = _text(body, "resourceVersion")
            return Malformed(ObjectKey(*explained.key), explained.message, version)

    # What is asked of objects of an API, and of those alone.

    def _complete(self, wire: WireObject[M], remarks: Remarks) -> M:
        if wire.is_bare():
            fault = InvalidField("", "there is nothing but metadata")
            raise self._explain(fault, _named(wire), _DEFAULT)
        return self._model(wire, _DEFAULT, remarks)

    def _check_kind(self, kind: object, api_version: object) -> None:
        """Raises ObjectError for an object of another kind; items of lists need not say theirs."""
        if kind in ("", self.name) and api_version in ("", self.api_version):
            return
        message = f"expected {self.name} of {self.api_version}, got {kind} of {api_version}"
        raise ObjectError(shortened(message), ("", ""))

    # Words.

    def _key(self, meta: Metadata) -> ObjectKey:
        return ObjectKey((meta.namespace or _DEFAULT) if self.namespaced else "", meta.name)

    def _no_event(self, why: str) -> ObjectError:
        return ObjectError(f"a watch event of {self.name}: {shortened(why)}", ("", ""))

    def _explain(self, error: Exception, value: object, namespace: str) -> ObjectError:
        space = (_text(value, "namespace") or namespace) if self.namespaced else ""
        key = (space, _text(value, "name"))
        return ObjectError(self._said(value, _reason(error), namespace), key)

    def _said(self, value: object, what: object, namespace: str = _DEFAULT) -> str:
        """`Service ns/name: what`."""
        name = shortened(_text(value, "name")) or "(no name)"
        space = (_text(value, "namespace") or namespace) if self.namespaced else ""
        return (
            f"{self.name} {shortened(space)}/{name}: {what}"
            if space
            else f"{self.name} {name}: {what}"
        )


def _reason(error: Exception) -> str:
    """`spec.ports[0].port: expected int, got str`, from an error of msgspec or of our own."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if not isinstance(error, msgspec.ValidationError):
        return shortened(str(error))
    return shortened(explain(error).removeprefix("object."))  # of a watch event


def _named(wire: WireObject[M]) -> _Json:
    return {"metadata": {"name": wire.metadata.name, "namespace": wire.metadata.namespace}}


def _text(value: object, field: str) -> str:
    """metadata.`field` of an object that may be anything."""
    meta = value.get("metadata") if isinstance(value, dict) else None
    text = meta.get(field) if isinstance(meta, dict) else None
    return text if isinstance(text, str) else ""


SERVICES: Kind[Service] = Kind("Service", "v1", WireService)
SLICES: Kind[EndpointSlice] = Kind("EndpointSlice", "discovery.k8s.io/v1", WireEndpointSlice)
NODES: Kind[Node] = Kind("Node", "v1", WireNode, namespaced=False)
