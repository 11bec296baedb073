"""A lab whose uplinks can do what XDP wants: veths need a hand for that."""

from __future__ import annotations

import array
import fcntl
import json
import socket
import struct

from lbctl.lab import namespace
from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from tests.support.waiting import wait_until

_SIOCETHTOOL = 0x8946
# linux/ethtool.h
_SET_GRO, _SET_TX_CHECKSUMS = 0x2C, 0x17
_STRINGS, _STATS, _SET_COUNT = 0x1B, 0x1D, 0x37
_NAME = 32


def let_transmit(lab: Lab, on: bool = True) -> None:
    """What drivers hand to a node's uplink arrives at the fabric's end of it, or is lost there."""

    def each() -> None:
        for node in lab.nodes:
            _set(node.name, _SET_GRO, on)

    namespace.run_in(lab.state.topology.fabric, each)


def finish_checksums(lab: Lab, member: str, on: bool = True) -> None:
    """A member computes its packets' checksums, as a machine with a real device does in the end."""
    found = lab.find(member)
    namespace.run_in(found.namespace, lambda: _set("eth0", _SET_TX_CHECKSUMS, not on))


def drivers(lab: Lab, node: str) -> dict[str, tuple[str, str]]:
    """By name of a device, its state and why, as `lbctl status` says."""
    command = lbctl_command("status", "-o", "json", "--pin-dir", str(lab.pin_dir(node)))
    said = json.loads(lab.exec(node, command, check=True).stdout)
    return {item["name"]: (item["state"], item["why"]) for item in said["drivers"]}


def others(lab: Lab, node: str) -> list[str]:
    """Who would have a say about what drivers send on, as `lbctl status` says."""
    command = lbctl_command("status", "-o", "json", "--pin-dir", str(lab.pin_dir(node)))
    said: list[str] = json.loads(lab.exec(node, command, check=True).stdout)["xdp_others"]
    return said


def wait_state(lab: Lab, node: str, state: str | None) -> None:
    """Until the node's uplink is in it; None: not looked at."""
    wait_until(lambda: drivers(lab, node).get("eth0", (None, ""))[0] == state, 20)


def sent_on(lab: Lab, node: str) -> int:
    """Frames that the uplink's driver has not handed up, by the veth driver's count."""
    found = lab.node(node)
    return namespace.run_in(found.namespace, lambda: _count("eth0", "_xdp_redirect"))


def _set(link: str, command: int, on: bool) -> None:
    _ask(link, array.array("B", struct.pack("=II", command, on)))


def _count(link: str, ending: str) -> int:
    """The sum of a driver's counts whose names end so (ETH_SS_STATS)."""
    info = array.array("B", struct.pack("=IIQI", _SET_COUNT, 0, 1 << 1, 0))
    _ask(link, info)
    (number,) = struct.unpack_from("=I", info, 16)
    names = array.array("B", struct.pack("=III", _STRINGS, 1, number) + bytes(_NAME * number))
    _ask(link, names)
    values = array.array("B", struct.pack("=II", _STATS, number) + bytes(8 * number))
    _ask(link, values)
    texts = [bytes(names[12 + i * _NAME :][:_NAME]).split(b"\0")[0] for i in range(number)]
    counts = struct.unpack_from(f"={number}Q", values, 8)
    return sum(
        count for text, count in zip(texts, counts, strict=True) if text.decode().endswith(ending)
    )


def _ask(link: str, request: array.array[int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        ifreq = struct.pack("16sP", link.encode(), request.buffer_info()[0])
        fcntl.ioctl(control, _SIOCETHTOOL, ifreq + bytes(16))
