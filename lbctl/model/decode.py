"""From raw JSON bytes, or parsed YAML, to records of the model; failures name object and field."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

import msgspec

from lbctl.errors import ObjectError
from lbctl.fieldnames import explain
from lbctl.model.records import EndpointSlice, Node, ObjectKey, Service
from lbctl.model.wire import InvalidField, Metadata, Wire, WireEndpointSlice, WireNode, WireService

Record = TypeVar("Record", covariant=True)
M = TypeVar("M")
W = TypeVar("W")


class WireObject(Protocol[Record]):
    """What every type of `wire.py` that stands for a whole object can do."""

    @property
    def metadata(self) -> Metadata: ...

    def to_model(self, namespace: str = ...) -> Record: ...


class Changed(msgspec.Struct, Generic[M], frozen=True, gc=False):
    """An object as it now is (ADDED or MODIFIED)."""

    object: M
    resource_version: str


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
    """An event whose object does not decode. `key` is empty where even that was unreadable."""

    key: ObjectKey
    message: str
    resource_version: str


Event = Changed[M] | Deleted | Bookmark | Refused | Malformed


class Page(msgspec.Struct, Generic[M], frozen=True, gc=False):
    """One page of a list. `malformed` are the items that do not decode."""

    objects: list[M]
    malformed: list[Malformed]
    resource_version: str
    next: str  # the `continue` token; empty on the last page


class _WireStatus(Wire):
    code: int = 0
    message: str = ""
    reason: str = ""


class _OnlyMetadata(Wire):
    metadata: Metadata


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
    items: list[W] | None = None


class Kind(Generic[M]):
    """One kind of object: its decoders, built once.

    `name` is the kind as in the API, `namespaced` whether its objects live in namespaces.
    """

    def __init__(self, name: str, wire: type[WireObject[M]], *, namespaced: bool = True) -> None:
        self.name = name
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

    def decode(self, data: bytes | msgspec.Raw, namespace: str = "default") -> M:
        """One object from JSON. Objects without a namespace get `namespace`. Raises ObjectError."""
        try:
            return self._object.decode(data).to_model(namespace)
        except (msgspec.DecodeError, InvalidField) as error:
            raise self._explain(error, _loose(data), namespace) from error

    def convert(self, value: object, namespace: str = "default") -> M:
        """The same from parsed YAML."""
        try:
            return msgspec.convert(value, self._wire).to_model(namespace)
        except (msgspec.ValidationError, InvalidField) as error:
            raise self._explain(error, value, namespace) from error

    def decode_list(self, data: bytes) -> Page[M]:
        """A list as the API returns it. Raises ObjectError only if it is no list at all."""
        try:
            decoded = self._list.decode(data)
            meta = decoded.metadata
            objects = [item.to_model() for item in decoded.items or ()]
            return Page(objects, [], meta.resource_version, meta.next)
        except (msgspec.DecodeError, InvalidField):
            return self._decode_one_by_one(data)

    def _decode_one_by_one(self, data: bytes) -> Page[M]:
        try:
            decoded = self._raw_list.decode(data)
        except msgspec.DecodeError as error:
            message = f"{self.name}List: {_reason(error)}"
            raise ObjectError(message, ("", "")) from error
        objects, malformed = [], []
        for item in decoded.items or ():
            try:
                objects.append(self.decode(item))
            except ObjectError as error:
                malformed.append(Malformed(ObjectKey(*error.key), error.message, ""))
        return Page(objects, malformed, decoded.metadata.resource_version, decoded.metadata.next)

    def decode_event(self, line: bytes) -> Event[M]:
        """One line of a watch. Raises ObjectError if it is no event at all."""
        try:
            event = self._event.decode(line)
            match event:
                case _Added() | _Modified():
                    wire: WireObject[M] = event.object
                    return Changed(wire.to_model(), wire.metadata.resource_version)
                case _Deleted():
                    meta = event.object.metadata
                    return Deleted(self._key(meta), meta.resource_version)
                case _Bookmark():
                    return Bookmark(event.object.metadata.resource_version)
                case _:
                    status: _WireStatus = event.object
                    return Refused(status.code, status.message or status.reason)
        except (msgspec.DecodeError, InvalidField) as error:
            return self._malformed_event(line, error)

    def _malformed_event(self, line: bytes, error: Exception) -> Malformed:
        event = _loose(line)
        if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
            message = f"a watch event of {self.name}: {_reason(error)}"
            raise ObjectError(message, ("", "")) from error
        explained = self._explain(error, event["object"], "default")
        version = _text(event["object"], "resourceVersion")
        return Malformed(ObjectKey(*explained.key), explained.message, version)

    def _key(self, meta: Metadata) -> ObjectKey:
        return ObjectKey((meta.namespace or "default") if self.namespaced else "", meta.name)

    def _explain(self, error: Exception, value: object, namespace: str) -> ObjectError:
        name = _text(value, "name")
        space = (_text(value, "namespace") or namespace) if self.namespaced else ""
        label = f"{space}/{name or '(no name)'}" if space else name or "(no name)"
        return ObjectError(f"{self.name} {label}: {_reason(error)}", (space, name))


def _reason(error: Exception) -> str:
    """`spec.ports[0].port: expected int, got str`, from an error of msgspec or of wire.py."""
    if not isinstance(error, msgspec.ValidationError):
        return str(error)
    return explain(error).removeprefix("object.")  # of a watch event


def _loose(data: bytes | msgspec.Raw) -> object:
    """The same bytes without any expectation, to find a name in; None if they are not JSON."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return None


def _text(value: object, field: str) -> str:
    """metadata.`field` of an object that may be anything."""
    meta = value.get("metadata") if isinstance(value, dict) else None
    text = meta.get(field) if isinstance(meta, dict) else None
    return text if isinstance(text, str) else ""


SERVICES: Kind[Service] = Kind("Service", WireService)
SLICES: Kind[EndpointSlice] = Kind("EndpointSlice", WireEndpointSlice)
NODES: Kind[Node] = Kind("Node", WireNode, namespaced=False)
