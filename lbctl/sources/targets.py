"""What endpoints are called: the pods behind their addresses, and the nodes those run on.

The agent keeps none of this, since it needs none of it. Whoever wants names for people reads the
slices once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

import msgspec

from lbctl.addresses import parse_address
from lbctl.errors import SourceError
from lbctl.model.lenient import UNREADABLE
from lbctl.sources import documents
from lbctl.sources.client import ApiClient
from lbctl.sources.yamltext import Unreadable

_PATH: Final = "/apis/discovery.k8s.io/v1/endpointslices"
_KIND: Final = "EndpointSlice"
_PAGE: Final = "500"
_MOST_PAGES: Final = 10_000
_SILENCE_SECONDS: Final = 30.0


class Target(msgspec.Struct, frozen=True):
    """`name`: namespace/name of the pod."""

    name: str
    node: str


class _Reference(msgspec.Struct):
    kind: str = ""
    name: str = ""
    namespace: str = ""


class _Endpoint(msgspec.Struct, rename="camel"):
    addresses: list[str]
    node_name: str | None = None
    target_ref: _Reference | None = None


class _Metadata(msgspec.Struct):
    namespace: str = "default"


class ListMetadata(msgspec.Struct):
    """Of a list: where it goes on."""

    next: str = msgspec.field(default="", name="continue")


class _Slice(msgspec.Struct):
    metadata: _Metadata
    endpoints: list[_Endpoint] | None = None


class _Slices(msgspec.Struct):
    metadata: ListMetadata
    items: list[_Slice] | None = None


Targets = dict[bytes, Target]
T = TypeVar("T")


class _List(Protocol):
    @property
    def metadata(self) -> ListMetadata: ...


List = TypeVar("List", bound=_List)


def of_files(path: Path) -> Targets:
    """By address. What cannot be read has no names. Raises SourceError if nothing can be."""
    found: Targets = {}
    for file in documents.manifest_files(path):
        for document in documents.documents(file, documents.read_bytes(file)):
            if not isinstance(document, Unreadable):
                _add(found, _slices_in(document))
    return found


def of_api(kubeconfig: Path | None, api_server: str | None, namespace: str = "") -> Targets:
    """By address, of one namespace or all. Raises SourceError, HttpError, ConfigError."""
    found: Targets = {}
    wanted = {"fieldSelector": f"metadata.namespace={namespace}"} if namespace else {}
    for page in pages(kubeconfig, api_server, _PATH, _Slices, wanted):
        _add(found, page.items or ())
    return found


def pages(
    kubeconfig: Path | None,
    api_server: str | None,
    path: str,
    kind: type[List],
    wanted: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[List]:
    """All of a list. Raises SourceError, HttpError, ConfigError."""
    query = {"limit": _PAGE, **wanted}
    with contextlib.closing(ApiClient(kubeconfig, api_server)) as client:
        for _ in range(_MOST_PAGES):
            page = _decoded(client, path, query, kind)
            yield page
            if not page.metadata.next:
                return
            query["continue"] = page.metadata.next


def read(kubeconfig: Path | None, api_server: str | None, path: str, kind: type[T]) -> T:
    """One object. Raises SourceError, HttpError, ConfigError."""
    with contextlib.closing(ApiClient(kubeconfig, api_server)) as client:
        return _decoded(client, path, {}, kind)


def _decoded(client: ApiClient, path: str, query: dict[str, str], kind: type[T]) -> T:
    response = client.get(path, query, _SILENCE_SECONDS)
    parts = []
    try:
        while part := response.read_some():
            parts.append(part)
    finally:
        response.close()
    try:
        return msgspec.json.decode(b"".join(parts), type=kind)
    except UNREADABLE as error:
        raise SourceError(f"the answer to {path} cannot be read: {error}") from error


def _slices_in(document: object) -> Iterator[_Slice]:
    for _, value in documents.items(document):
        if isinstance(value, dict) and value.get("kind") == _KIND:
            try:
                yield msgspec.convert(value, _Slice)
            except msgspec.ValidationError:
                continue  # what is wrong with it, the agent says


def _add(found: Targets, slices: Iterable[_Slice]) -> None:
    """What a slice does not say of an address, as those made by hand, another one may have."""
    for address, target in _named(slices):
        known = found.get(address, target)
        found[address] = Target(target.name or known.name, target.node or known.node)


def _named(slices: Iterable[_Slice]) -> Iterator[tuple[bytes, Target]]:
    for found in slices:
        for endpoint in found.endpoints or ():
            reference: Any = endpoint.target_ref or _Reference()
            pod = reference.name if reference.kind == "Pod" else ""
            namespace = reference.namespace or found.metadata.namespace
            name = f"{namespace}/{pod}" if pod else ""
            for text in endpoint.addresses:
                try:
                    address = parse_address(text)
                except ValueError:
                    continue  # a host's name
                yield address, Target(name, endpoint.node_name or "")
