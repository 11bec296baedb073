"""Kubernetes objects in YAML and JSON files: documents, lists, errors that name the place.

A file may hold anything. Whatever it is, `parse` returns objects and sentences, and each document,
item and object that cannot be read costs itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from lbctl.errors import ObjectError, SourceError
from lbctl.model.decode import NODES, SERVICES, SLICES, Kind
from lbctl.model.fields import Remarks, shortened
from lbctl.model.lenient import UNREADABLE, loose
from lbctl.model.records import EndpointSlice, Node, ObjectKey, Service, ServiceObjects
from lbctl.sources.smallfiles import read_bounded
from lbctl.sources.store import Object, key_of
from lbctl.sources.yamltext import Unreadable, load_all

SUFFIXES = (".yaml", ".yml", ".json")
MAX_BYTES: Final = 512 << 20  # of one file
MOST_SENTENCES: Final = 1000  # about one file, of each sort
Identity = tuple[type[Object], ObjectKey]
_KINDS: dict[str, Kind[Service] | Kind[EndpointSlice] | Kind[Node]] = {
    kind.name: kind for kind in (SERVICES, SLICES, NODES)
}
_RECORDS: dict[str, type[Object]] = {
    SERVICES.name: Service,
    SLICES.name: EndpointSlice,
    NODES.name: Node,
}


class Manifests(msgspec.Struct, frozen=True):
    """All objects of some files, for those who need them once."""

    services: dict[ObjectKey, ServiceObjects]
    nodes: dict[str, Node]
    remarks: tuple[str, ...] = ()  # about parts that have their defaults or were left out


def load_manifests(path: Path) -> Manifests:
    """The objects of a file, or of the files of a directory.

    Raises SourceError for a missing path, unreadable text, or a malformed object.
    """
    found: dict[tuple[type[Object], ObjectKey], Object] = {}
    remarks: list[str] = []
    for file in manifest_files(path):
        read = read_file(file)
        remarks += read.remarks
        for value in read.objects:
            found.setdefault((type(value), key_of(value)), value)
    slices: dict[ObjectKey, list[EndpointSlice]] = {}
    for value in found.values():
        if isinstance(value, EndpointSlice) and value.service is not None:
            slices.setdefault(value.service, []).append(value)
    return Manifests(
        services={
            s.key: ServiceObjects(s, tuple(sorted(slices.get(s.key, ()), key=key_of)))
            for s in found.values()
            if isinstance(s, Service)
        },
        nodes={n.name: n for n in found.values() if isinstance(n, Node)},
        remarks=tuple(remarks),
    )


def manifest_files(path: Path) -> list[Path]:
    """The files that count: `path` itself, or those of a directory by suffix, sorted, hidden ones
    left out (a mounted ConfigMap keeps its versions in those). Raises SourceError."""
    try:
        if path.is_dir():
            return sorted(f for f in path.iterdir() if is_manifest(f.name) and f.is_file())
        path.stat()
    except OSError as error:
        raise SourceError(
            f"{path}: {error.strerror}",
            hint="--manifests takes a file or a directory of Kubernetes YAML or JSON.",
        ) from error
    return [path]


def is_manifest(name: str) -> bool:
    """Whether a file of this name in a directory counts."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


def read_file(file: Path) -> Parsed:
    """All Services, EndpointSlices and Nodes of one file; other kinds are skipped. What is wrong
    with parts of them is remarked, as the agent does that follows the file.

    Raises SourceError, naming file, document and object, if one of them cannot be had at all.
    """
    found = parse(file, read_bytes(file))
    errors = [*found.errors, *found.malformed.values()]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise SourceError(f"{errors[0]}{more}")
    return found


def read_bytes(file: Path) -> bytes:
    """The file's content. Raises SourceError."""
    try:
        return read_bounded(file, MAX_BYTES)
    except OSError as error:
        raise SourceError(f"{file}: {error.strerror}") from error


class Parsed(msgspec.Struct):
    """What one file holds; the sentences name file, document and object, and are not all of them
    if there are very many."""

    objects: list[Object] = []
    remarks: list[str] = []  # about parts of these
    malformed: dict[Identity, str] = {}  # objects that are there and cannot be read
    errors: list[str] = []  # of what may be any object, or several

    def add_error(self, text: str) -> None:
        """Something that has no name is wrong."""
        if len(self.errors) < MOST_SENTENCES:
            self.errors.append(text)

    def add_remark(self, text: str) -> None:
        """A part of an object is wrong."""
        if len(self.remarks) < MOST_SENTENCES:
            self.remarks.append(text)


def parse(file: Path, data: bytes) -> Parsed:
    """Everything in the content of a file. Never raises."""
    found = Parsed()
    for number, document in enumerate(documents(file, data), 1):
        place = f"{file}, document {number}"
        if isinstance(document, Unreadable):
            where = file if document.is_rest else place
            found.add_error(f"{where}: {document.why}")
            continue
        for item, value in items(document):
            _add_object(found, f"{place}{item}", value)
    return found


def documents(file: Path, data: bytes) -> Iterator[object]:
    """JSON through the fast decoder, everything else as YAML (of which JSON is a subset)."""
    if file.suffix == ".json":
        try:
            yield msgspec.json.decode(data)
        except UNREADABLE as error:
            # Either several documents, separated as in YAML, or damaged.
            if b"\n---" not in data:
                yield _loose_document(data, error)
                return
        else:
            return
    yield from load_all(data)


def _loose_document(data: bytes, error: Exception) -> object:
    """Numbers out of range and nesting without end are still JSON."""
    try:
        return loose(data)
    except ObjectError:
        return Unreadable(shortened(str(error)), is_rest=True)


def items(document: object) -> list[tuple[str, object]]:
    """The objects of one document, itself or the items of a list, each with its place in there."""
    if document is None:
        return []
    if not isinstance(document, dict) or not isinstance(document.get("items"), list):
        return [("", document)]
    # The API leaves the kind out of the items of a typed list.
    kind = str(document.get("kind") or "").removesuffix("List")
    return [
        (f", item {number}", _with_kind(item, kind))
        for number, item in enumerate(document["items"], 1)
    ]


def _with_kind(item: object, kind: str) -> object:
    return {"kind": kind, **item} if kind and isinstance(item, dict) else item


def _add_object(found: Parsed, place: str, value: object) -> None:
    """The record of one object; nothing for kinds that mean nothing here."""
    if not isinstance(value, dict):
        found.add_error(f"{place}: expected an object, got {type(value).__name__}")
        return
    name = value.get("kind")
    if not isinstance(name, str):
        found.add_error(f"{place}: an object without kind")
        return
    known = _KINDS.get(name)
    if known is None or _group(value.get("apiVersion", "")) not in ("", _group(known.api_version)):
        return
    remarks = Remarks()
    try:
        record = known.convert(value, remarks=remarks)
    except ObjectError as error:
        sentence = f"{place}: {error.message}"
        if error.key[1]:
            found.malformed[_RECORDS[name], ObjectKey(*error.key)] = sentence
        else:
            found.add_error(sentence)
        return
    found.objects.append(record)
    if remarks:
        found.add_remark(f"{place}: {name} {key_of(record)}: {remarks}")


def _group(api_version: object) -> str:
    """`discovery.k8s.io` of `discovery.k8s.io/v1`; empty for `v1`, and where nothing is said."""
    return api_version.rpartition("/")[0] if isinstance(api_version, str) else ""
