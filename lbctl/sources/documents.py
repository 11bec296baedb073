"""Kubernetes objects in YAML and JSON files: documents, lists, errors that name the place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import yaml

from lbctl.errors import ObjectError, SourceError
from lbctl.model.decode import NODES, SERVICES, SLICES, Kind
from lbctl.model.records import EndpointSlice, Node, ObjectKey, Service, ServiceObjects
from lbctl.sources.store import Object, key_of

SUFFIXES = (".yaml", ".yml", ".json")
_KINDS: dict[str, Kind[Service] | Kind[EndpointSlice] | Kind[Node]] = {
    kind.name: kind for kind in (SERVICES, SLICES, NODES)
}


def _loader() -> type[yaml.SafeLoader]:
    """The fast loader if libyaml is there, leaving times as text, as JSON has them."""
    base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in base.yaml_implicit_resolvers.items()
    }
    return type("Loader", (base,), {"yaml_implicit_resolvers": resolvers})


_Loader = _loader()


class Manifests(msgspec.Struct, frozen=True):
    """All objects of some files, for those who need them once."""

    services: dict[ObjectKey, ServiceObjects]
    nodes: dict[str, Node]


def load_manifests(path: Path) -> Manifests:
    """The objects of a file, or of the files of a directory.

    Raises SourceError for a missing path, unreadable text, or a malformed object.
    """
    found: dict[tuple[type[Object], ObjectKey], Object] = {}
    for file in manifest_files(path):
        for value in read_file(file):
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


def read_file(file: Path) -> list[Object]:
    """All Services, EndpointSlices and Nodes of one file; other kinds are skipped.

    Raises SourceError, naming file, document and object, if any of them is malformed.
    """
    objects, errors = parse(file, read_bytes(file))
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise SourceError(f"{errors[0]}{more}")
    return objects


def read_bytes(file: Path) -> bytes:
    """The file's content. Raises SourceError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise SourceError(f"{file}: {error.strerror}") from error


def parse(file: Path, data: bytes) -> tuple[list[Object], list[str]]:
    """The good objects of one file, and a sentence about everything that is not good."""
    objects: list[Object] = []
    errors: list[str] = []
    try:
        for number, document in enumerate(_documents(file, data), 1):
            for item, value in _items(document):
                try:
                    objects.extend(_object(value))
                except ObjectError as error:
                    errors.append(f"{file}, document {number}{item}: {error.message}")
    except (yaml.YAMLError, msgspec.DecodeError, UnicodeDecodeError) as error:
        errors.append(f"{file}: {_syntax(error)}")
    return objects, errors


def _documents(file: Path, data: bytes) -> Iterator[object]:
    """JSON through the fast decoder, everything else as YAML (of which JSON is a subset)."""
    if file.suffix == ".json":
        try:
            yield msgspec.json.decode(data)
        except msgspec.DecodeError:
            if b"\n---" not in data:  # several JSON documents, separated as in YAML
                raise
        else:
            return
    yield from yaml.load_all(data, Loader=_Loader)


def _items(document: object) -> list[tuple[str, object]]:
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


def _object(value: object) -> list[Object]:
    """The record of one object; nothing for kinds that mean nothing here. Raises ObjectError."""
    if not isinstance(value, dict):
        raise ObjectError(f"expected an object, got {type(value).__name__}", ("", ""))
    name = value.get("kind")
    if not isinstance(name, str):
        raise ObjectError("an object without kind", ("", ""))
    kind = _KINDS.get(name)
    return [] if kind is None else [kind.convert(value)]


def _syntax(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        problem = getattr(error, "problem", None) or "not YAML"
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
    return str(error)
