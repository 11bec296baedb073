"""YAML documents as JSON has them: texts, numbers, lists and maps, whatever the text asks for.

Times stay texts. A document whose tags, keys or references make no sense costs itself; text that is
no YAML costs itself and what follows.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import yaml

from lbctl.model.fields import shortened

# What PyYAML's constructors raise for values that do not fit their tag (`!!int x`, `!!timestamp x`,
# `? [a]`, a number of 5,000 digits), beside its own errors.
_FAULTS = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
)
# References may make a document so many times larger than its text is long.
_GROWTH = 10
_SMALL = 100_000  # values; a document of fewer may refer as it likes


class Unreadable(msgspec.Struct, frozen=True):
    """A document that is none. `is_rest`: nothing that follows can be told apart."""

    why: str
    is_rest: bool = False


def load_all(data: bytes) -> Iterator[object]:
    """Each document, parsed or `Unreadable`."""
    try:
        loader = _Loader(data)
    except _FAULTS as error:  # a wrong encoding
        yield Unreadable(_why(error), is_rest=True)
        return
    try:
        yield from _read(loader, refers=b"*" in data)
    finally:
        loader.dispose()


def _read(loader: yaml.SafeLoader, *, refers: bool) -> Iterator[object]:
    while True:
        try:
            if not loader.check_node():
                return
            node = loader.get_node()
        except _FAULTS as error:
            yield Unreadable(_why(error), is_rest=True)
            return
        try:
            if refers and node is not None:
                _refuse_bombs(node)
            yield loader.construct_document(node)
        except _FAULTS as error:
            yield Unreadable(_why(error))


def _refuse_bombs(root: yaml.Node) -> None:
    """A few references to references stand for more values than there is memory. Raises ValueError.

    Sizes of nodes are added up from the leaves, each node once and without recursion."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            open_nodes.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in _children(node))
        elif id(node) in open_nodes:
            raise ValueError("a reference leads back to where it stands")
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            stack.append((node, True))
            stack += [(child, False) for child in _children(node)]
    if sizes[id(root)] > max(_SMALL, _GROWTH * len(sizes)):
        raise ValueError(f"its references stand for {sizes[id(root)]:,} values")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return []


def _why(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        problem = getattr(error, "problem", None) or "not YAML"
        return shortened(f"line {mark.line + 1}, column {mark.column + 1}: {problem}")
    return shortened(" ".join(str(error).split()) or type(error).__name__)


def _loader() -> type[yaml.SafeLoader]:
    """The fast loader if libyaml is there, leaving times as text, as JSON has them."""
    base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in base.yaml_implicit_resolvers.items()
    }
    return type("Loader", (base,), {"yaml_implicit_resolvers": resolvers})


_Loader = _loader()
