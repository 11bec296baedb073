"""The names of service ports: what the agent wrote for people, and how people refer to them."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator

import msgspec

from lbctl.datapath.tables import HashTable
from lbctl.inspect.opened import NotFound


class PortName(msgspec.Struct, frozen=True, order=True):
    """One service port of one family, from `namespace/service:port/PROTOCOL/vN`."""

    namespace: str
    service: str
    port: str  # the port's name, may be empty
    protocol: str
    family: str  # v4 or v6
    text: str

    @classmethod
    def parse(cls, text: str) -> PortName:
        """A text that is not of this form (cut off, or of another version) becomes the service."""
        parts = text.split("/")
        if len(parts) != 4:
            return cls("", text, "", "", "", text)
        namespace, service, protocol, family = parts
        service, _, port = service.partition(":")
        return cls(namespace, service, port, protocol, family, text)

    @property
    def label(self) -> str:
        """`namespace/service:port`, as people write it."""
        name = f"{self.namespace}/{self.service}" if self.namespace else self.service
        return f"{name}:{self.port}" if self.port else name

    def matches(self, query: str) -> bool:
        """Does `query` mean this port: `service`, `namespace/service`, with or without `:port`,
        or the whole text."""
        if query == self.text:
            return True
        name, _, port = query.partition(":")
        if port and port != self.port:
            return False
        return name in (self.service, f"{self.namespace}/{self.service}")


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
    full = {f"{name.namespace}/{name.service}" for name in known.values()}
    if "/" in query:
        candidates = {name: name for name in full}
    else:
        candidates = {name.partition("/")[2]: name for name in sorted(full)}
    near = difflib.get_close_matches(query.partition(":")[0], candidates, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(candidates[name] for name in near)}?"
    return "`lbctl service list` shows those that are programmed on this node."
