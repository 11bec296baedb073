"""What is known of sockets and flows in a node's maps, and what a call on a socket ends with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ebpf.maps.hashes import HashMap
from lbctl.addresses import parse_address
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
        cells = instance.flow_tables[":" in address].view()
    raw = parse_address(address)
    return [str(cell) for cell in cells if raw in (cell["src"].tobytes(), cell["dst"].tobytes())]
