"""A node that forwards, in a namespace of its own: the world's programs on real interfaces, and raw
ears and mouths at both ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ebpf.hooks.tc import Attacher
from ebpf.kernel import bpffs
from tests.kernel.support import model
from tests.kernel.support.programs import MACHINE_BPFFS, Space, unique
from tests.kernel.support.world import World

# The node's interfaces, and what is at the other end of each.
NEAR, FAR = "left", "behind"
ENDS = {NEAR: "right", FAR: "far"}
MACS = {NEAR: "02:00:00:00:01:01", FAR: "02:00:00:00:02:01"}
# Of nobody: the ends are of the same kernel, which must not forward what arrives there.
OTHERS = {NEAR: "02:00:00:00:01:99", FAR: "02:00:00:00:02:99"}
# By which the node is known there: what masquerades takes those of the far one.
ADDRESSES = {
    NEAR: {4: "169.254.1.1", 6: "fe80::1"},
    FAR: {4: "169.254.2.1", 6: "fe80::2"},
}
TUNNEL = "tunnel"
_ETH_P_ALL = 0x0003
_TUNSETIFF = 0x400454CA  # linux/if_tun.h, as the next two
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_SOON = 2.0  # seconds in which what was sent comes out


class Router:
    """Everything goes to the far end, but for `near`: addresses that are at the near one."""

    def __init__(self, near: Iterable[str]) -> None:
        self._space = Space(unique("router"))
        self._pins: Path = MACHINE_BPFFS / unique("router")
        bpffs.mount()
        bpffs.make_directory(self._pins)
        bpffs.make_directory(self._pins / "links")
        self._space.ip("link", "add", FAR, "type", "veth", "peer", "name", ENDS[FAR])
        for device, mac in MACS.items():
            self._space.ip("link", "set", device, "addrgenmode", "none", "address", mac, "up")
            self._space.ip("link", "set", ENDS[device], "addrgenmode", "none", "up")
        self._forward(near)
        self._ears = {device: self._ear(device) for device in ENDS.values()}
        self._attacher: Attacher = self._space.run(lambda: Attacher(self._pins))

    def _forward(self, near: Iterable[str]) -> None:
        def settings() -> None:
            for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                Path("/proc/sys/net", name).write_text("1")

        self._space.run(settings)
        for device, addresses in ADDRESSES.items():
            first4, first6 = addresses.values()
            next4, next6 = first4[:-1] + "2", first6 + "2"
            self._space.ip("addr", "add", f"{first4}/24", "dev", device)
            self._space.ip("addr", "add", f"{first6}/64", "dev", device, "nodad")
            for hop in (next4, next6):
                self._space.ip("neigh", "add", hop, "lladdr", OTHERS[device], "dev", device)
        for kind, hop in (("-4", "169.254.2.2"), ("-6", "fe80::22")):
            self._space.ip(kind, "route", "add", "default", "via", hop, "dev", FAR)
        for address in near:
            hop = "fe80::12" if ":" in address else "169.254.1.2"
            self._space.ip("route", "add", address, "via", hop, "dev", NEAR)

    def _ear(self, device: str) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            made.bind((device, _ETH_P_ALL))
            made.setblocking(False)
            return made

        return self._space.run(make)

    def index(self, device: str) -> int:
        """Of an interface of the node."""
        return self._space.index(device)

    def change(self, *words: str) -> None:
        """What `ip` is told on the node."""
        self._space.ip(*words)

    def attach(self, world: World, device: str, direction: str, program: str) -> None:
        """One of the world's entry programs on an interface of the node."""
        index, fd = self._space.index(device), world.programs.fds[program]
        self._space.run(lambda: self._attacher.attach(device, index, direction, fd))

    def detach(self) -> None:
        """All programs."""
        self._space.run(self._attacher.detach_all)

    def through(self, device: str, frames: Sequence[bytes], count: int) -> list[bytes]:
        """What comes out of the far side of the other interface when these come in at `device`:
        as many frames as soon as they are there, fewer after a while."""
        sender, out = ENDS[device], next(end for name, end in ENDS.items() if name != device)
        self._drain()
        mac = bytes.fromhex((MACS[device] + OTHERS[device]).replace(":", ""))
        for frame in frames:
            self._ears[sender].send(mac + frame[12:])
        return self._heard(out, count)

    def add_tunnel(self, beyond: Iterable[str]) -> int:
        """A device without link header that leads to these addresses. Returns its other end: a
        descriptor that takes and gives packets."""

        def make() -> int:
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            wanted = struct.pack("16sH", TUNNEL.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(end, _TUNSETIFF, wanted.ljust(40, b"\0"))
            return end

        end = self._space.run(make)
        self._space.ip("link", "set", TUNNEL, "addrgenmode", "none", "up")
        for address in beyond:
            self._space.ip("route", "add", address, "dev", TUNNEL)
        return end

    def out_of_tunnel(self, end: int, packets: Sequence[bytes], count: int) -> list[bytes]:
        """What comes out at the far end when these packets come in by the tunnel."""
        self._drain()
        for packet in packets:
            os.write(end, packet)
        return self._heard(ENDS[FAR], count)

    def into_tunnel(self, end: int, frames: Sequence[bytes], count: int) -> list[bytes]:
        """Packets that leave by the tunnel when these frames come in at the far end."""
        self.through(FAR, frames, 0)
        found: list[bytes] = []
        until = time.monotonic() + _SOON
        while len(found) < count and time.monotonic() < until:
            try:
                packet = os.read(end, 65535)
            except BlockingIOError:
                time.sleep(0.001)
                continue
            if packet[0] >> 4 == 4 or packet[8:10] != b"\xfe\x80":  # the kernel's own
                found.append(packet)
        return found

    def _drain(self) -> None:
        for ear in self._ears.values():
            with contextlib.suppress(BlockingIOError):
                while True:
                    ear.recv(65535)

    def _heard(self, device: str, count: int) -> list[bytes]:
        found: list[bytes] = []
        end = time.monotonic() + _SOON
        while len(found) < count and time.monotonic() < end:
            try:
                data, about = self._ears[device].recvfrom(65535)
            except BlockingIOError:
                time.sleep(0.001)
                continue
            if about[2] != socket.PACKET_OUTGOING and is_ip(data):
                found.append(data)
        return found

    def close(self) -> None:
        self.detach()
        for ear in self._ears.values():
            ear.close()
        self._space.close()
        bpffs.remove_tree(self._pins)


def is_ip(frame: bytes) -> bool:
    """Neither a neighbour's question nor a router's, nor a report of groups (with options)."""
    if frame[12:14] == b"\x08\x00":
        return True
    return frame[12:14] == b"\x86\xdd" and frame[20] not in (0, model.ICMP6)
