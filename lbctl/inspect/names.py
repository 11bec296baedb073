"""The names of service ports: what the agent wrote for people, and how people refer to them."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator

from lbctl.datapath.tables import HashTable
from lbctl.errors import NotFound
from lbctl.model.names import PortName


def all_names(names: HashTable) -> dict[int, PortName]:
    """Service id to name."""
    return {
        service: PortName.parse(text.decode(errors="replace")) for service, text in _texts(names)
    }


def reader(names: HashTable) -> Callable[[int], PortName]:
    """A function that gives the name of a service id, and remembers it. An id without a name is
    named by its number."""

    @functools.cache
    def name_of(service: int) -> PortName:
        value = names.get(names.spec.key.pack(service=service))
        if value is None:
            return PortName.parse(f"service id {service}")
        text: bytes = names.spec.value.unpack(value)["text"]
        return PortName.parse(text.decode(errors="replace"))

    return name_of


def find(names: HashTable, query: str) -> dict[int, PortName]:
    """The service ports that `query` means. Raises NotFound with the nearest names."""
    part = query.partition(":")[0].encode()
    found: dict[int, PortName] = {}
    for service, text in _texts(names):
        # Most names are told apart by this alone, and need not be taken apart.
        if part in text:
            name = PortName.parse(text.decode(errors="replace"))
            if name.matches(query):
                found[service] = name
    if not found:
        raise NotFound(f"there is no service {query!r} here", _nearest(query, all_names(names)))
    return found


def _texts(names: HashTable) -> Iterator[tuple[int, bytes]]:
    for keys, values in names.batches():
        yield from zip(keys["service"].tolist(), values["text"].tolist(), strict=True)


def _nearest(query: str, known: dict[int, PortName]) -> str:
    full = {name.service_label for name in known.values()}
    if "/" in query:
        candidates = {name: name for name in full}
    else:
        candidates = {name.partition("/")[2]: name for name in sorted(full)}
    near = difflib.get_close_matches(query.partition(":")[0], candidates, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(candidates[name] for name in near)}?"
    return "`lbctl service list` shows those that are programmed on this node."
