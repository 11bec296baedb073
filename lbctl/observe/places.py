"""Whose an address is: a pod that is some service's endpoint, or this node."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from ebpf.errors import LbError
from lbctl.addresses import parse_address
from lbctl.config import standing
from lbctl.config.standing import SourcePlace
from lbctl.sources import targets
from lbctl.sources.targets import Targets

AGAIN_SECONDS: Final = 30.0  # pods come and go


class Place(msgspec.Struct, frozen=True):
    """`name` is namespace/pod, or a node's; both are empty where nothing is known."""

    name: str = ""
    node: str = ""


NOWHERE: Final = Place()


class Places:
    """Names by address. Reading them may fail: addresses are enough to go on with."""

    def __init__(
        self,
        node: str = "",
        addresses: frozenset[bytes] = frozenset(),
        read: Callable[[], Targets] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`node` has these `addresses`."""
        self.node = node
        self.problem = ""
        self._addresses = addresses
        self._read = read
        self._now = now
        self._known: Targets = {}
        self._missed = True
        self._next = float("-inf")

    @classmethod
    def of_agent(cls, pin_dir: Path) -> Places:
        """From where the agent of this instance has its objects."""
        said = standing.read(pin_dir)
        if said is None:
            return cls()
        addresses = frozenset(said.node.addresses)
        return cls(said.node.name, addresses, lambda: _read(said.source))

    def of(self, address: bytes) -> Place:
        """What is known of it."""
        if address in self._addresses:
            return Place(self.node, self.node)
        found = self._known.get(address)
        if found is None:
            self._missed = True
            return NOWHERE
        return Place(found.name, found.node)

    def named(self, address: str) -> Place:
        """The same of an address as text."""
        return self.of(parse_address(address))

    def refresh(self) -> None:
        """Read the names again, if there was an address without one and it has been a while."""
        now = self._now()
        if self._read is None or not self._missed or now < self._next:
            return
        self._missed = False
        self._next = now + AGAIN_SECONDS
        try:
            self._known = self._read()
            self.problem = ""
        except LbError as error:
            self.problem = f"names of pods are not known: {error.message}"


def _read(source: SourcePlace) -> Targets:
    if source.manifests:
        return targets.of_files(Path(source.manifests))
    file = Path(source.kubeconfig) if source.kubeconfig else None
    return targets.of_api(file, source.api_server or None)
