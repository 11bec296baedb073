"""What is known of sockets and flows in a node's maps, and what a call on a socket ends with."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from ebpf.maps.hashes import HashMap
from lbctl.inspect.opened import open_instance
from lbctl.lab.cluster import Lab

both_families = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])


def entries(lab: Lab, name: str, node: str = "node1") -> int:
    with open_instance(lab.pin_dir(node)) as instance:
        table = instance.map(name)
        assert isinstance(table, HashMap)
        return len(table.read_all()[0])


def error_of(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def flows(lab: Lab, address: str) -> list[str]:
    with open_instance(lab.pin_dir("node1")) as instance:
        keys, _ = instance.flows4.read_all()
    raw = int.from_bytes(socket.inet_aton(address), "little")
    return [str(key) for key in keys if raw in (int(key["src"]), int(key["dst"]))]
