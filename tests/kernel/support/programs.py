"""What the tests of ebpf/ share: a small bundle of their own, and a namespace with a veth pair."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pyroute2 import netns

from ebpf.compile import compiler
from ebpf.compile.source import Unit, family_unit
from ebpf.instance import Instance
from ebpf.layouts import HASH, LRU_HASH, Bundle
from ebpf.maps import HashMap
from ebpf.maps.declared import Share, Use

T = TypeVar("T")

# Of its maps, those that are none of the data path's: two of flows, which programs fill and whose
# size follows a number that one can choose.
USES = {
    "flows4": Use((HASH,), Share("flows", 2), filled=True, counted=False),
    "flows4_lru": Use((LRU_HASH,), Share("flows"), filled=True, counted=False),
}

SOURCES = Path(__file__).with_name("ebpf_c")
UNITS = (family_unit("4", "family.c"), family_unit("6", "family.c"), Unit("entry", "entry.c"))
MACHINE_BPFFS = Path("/sys/fs/bpf")


def small_bundle(**defines: str) -> Bundle:
    """The programs of tests/kernel/support/ebpf_c."""
    return compiler.bundle(defines=tuple(defines.items()), directory=SOURCES, units=UNITS)


def flows4(made: Instance) -> HashMap:
    """Its map of flows."""
    found = made.map("flows4")
    assert isinstance(found, HashMap)
    return found


class Space:
    """A network namespace with veths `left` and `right`, both up, and a thread that lives in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        ip("netns", "add", name)
        self._thread = ThreadPoolExecutor(1)
        self.run(lambda: netns.setns(name))
        self.ip("link", "set", "lo", "up")
        self.add_pair()

    def add_pair(self, left: str = "left") -> None:
        self.ip("link", "add", left, "type", "veth", "peer", "name", "right")
        for device in (left, "right"):
            # No addresses: nothing but the tests' own frames passes.
            self.ip("link", "set", device, "addrgenmode", "none", "up")

    def ip(self, *words: str) -> None:
        ip("-n", self.name, *words)

    def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, done inside the namespace."""
        return self._thread.submit(work).result(timeout=60)

    def index(self, device: str = "left") -> int:
        return self.run(lambda: socket.if_nametoindex(device))

    def send(self, count: int, device: str = "right") -> None:
        """Sends frames out of `device`, which arrive at its peer before this returns."""

        def work() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                raw.bind((device, 0))
                for _ in range(count):
                    raw.send(b"\xff" * 6 + bytes(6) + b"\x88\xb5" + bytes(46))

        self.run(work)

    def close(self) -> None:
        self._thread.shutdown()
        ip("netns", "delete", self.name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


def unique(prefix: str) -> str:
    return f"eb-{prefix}-{os.getpid()}"
