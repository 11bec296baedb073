"""The names of service ports: what the agent wrote for people, and how people refer to them."""

from __future__ import annotations

import difflib

import msgspec

from lbctl.inspect.opened import NotFound
from lbctl.tables import HashTable


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
    found: dict[int, PortName] = {}
    for keys, values in names.batches():
        for service, text in zip(keys["service"].tolist(), values["text"].tolist(), strict=True):
            found[service] = PortName.parse(text.decode(errors="replace"))
    return found


def find(names: HashTable, query: str) -> dict[int, PortName]:
    """The service ports that `query` means. Raises NotFound with the nearest names."""
    known = all_names(names)
    found = {service: name for service, name in known.items() if name.matches(query)}
    if not found:
        raise NotFound(f"there is no service {query!r} here", _nearest(query, known))
    return found


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
