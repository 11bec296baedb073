"""Frames as nobody's kernel would send them, and an ear on the wire for answers to them."""

from __future__ import annotations

import itertools
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from lbctl.lab.cluster import Lab
from tests.lab.support.labs import inside
from tests.support.waiting import wait_until

ETH_P_ALL = 0x0003
QUIET = 0.4  # seconds after the last frame in which an answer would have come
_ports = itertools.count(20000)


def next_port() -> int:
    """A client port of its own for each probe, by which answers to it are known."""
    return next(_ports)


def mac_of(lab: Lab, member: str, link: str = "eth0") -> str:
    """The hardware address of a link of a member."""
    shown = lab.exec(member, ["ip", "-o", "link", "show", link], check=True).stdout
    return shown.partition("link/ether ")[2].split()[0]


class Wire:
    """One end of a link of a member: everything that comes in is kept, anything can go out."""

    def __init__(self, lab: Lab, member: str, link: str = "eth0") -> None:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            made.bind((link, ETH_P_ALL))
            made.setblocking(False)
            return made

        self._sock = inside(lab, member, make)
        self.mac = mac_of(lab, member, link)

    def send(self, frames: Iterable[Any]) -> int:
        """Put frames on the wire as they are; how many."""
        count = 0
        for frame in frames:
            data = frame if isinstance(frame, bytes) else bytes(frame)
            self._sock.send(data.ljust(15, b"\0"))
            count += 1
        return count

    def heard(self, wait: float = QUIET) -> list[bytes]:
        """What has come in since this was last asked, and comes within `wait` seconds."""
        found: list[bytes] = []
        end = time.monotonic() + wait
        while True:
            try:
                data, about = self._sock.recvfrom(65535)
            except BlockingIOError:
                if time.monotonic() > end:
                    return found
                time.sleep(0.01)
                continue
            if about[2] != socket.PACKET_OUTGOING:
                found.append(data)

    def wait_for(self, enough: Callable[[list[bytes]], bool]) -> None:
        """Until what has come in since this was last asked is enough."""
        found: list[bytes] = []

        def is_enough() -> bool:
            found.extend(self.heard(0))
            return enough(found)

        wait_until(is_enough, why=lambda: f"{len(found)} frames")

    def close(self) -> None:
        self._sock.close()


@contextmanager
def wire(lab: Lab, member: str, link: str = "eth0") -> Iterator[Wire]:
    made = Wire(lab, member, link)
    try:
        yield made
    finally:
        made.close()


def about(frames: Iterable[bytes], port: int) -> list[bytes]:
    """Those frames that belong to the probe with this client port: from it, to it, or quoting it.
    Four bytes in a row are looked for, so that no other traffic is meant."""
    mark = struct.pack("!H", port)
    return [frame for frame in frames if _at_ports(frame, mark)]


def _at_ports(frame: bytes, mark: bytes) -> bool:
    kind = frame[12:14]
    if kind == b"\x08\x00":
        start, proto = 14 + 4 * (frame[14] & 15), frame[23]
    elif kind == b"\x86\xdd":
        start, proto = 54, frame[20]
        if proto == 44 and not frame[56] and not frame[57] >> 3:  # the first of fragments
            start, proto = 62, frame[54]
    else:
        return False
    if proto in (6, 17):
        return mark in (frame[start : start + 2], frame[start + 2 : start + 4])
    if proto in (1, 58):  # the quoted packet begins after eight bytes
        return mark in frame[start + 8 :]
    return False


def flags_of(frame: bytes) -> str:
    """The TCP flags of a frame, as "SA"; empty for anything else."""
    packet = Ether(frame)
    return str(packet[TCP].flags) if TCP in packet else ""
