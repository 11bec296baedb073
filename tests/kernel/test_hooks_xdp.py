"""Programs at drivers: attached by link in native mode, replaced, renamed with their device."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf.errors import KernelError
from ebpf.hooks.xdp import DriverAttacher
from ebpf.kernel import bpffs, libbpf, netdev, netlink, syscall, testrun
from ebpf.kernel.netdev import DriverFeatures
from ebpf.layouts import XDP, XDP_ATTACH
from tests.kernel.support.programs import MACHINE_BPFFS, Space, unique

pytestmark = pytest.mark.kernel
_INSTRUCTION = struct.Struct("=BBhi")
XDP_DROP, XDP_PASS, XDP_TX = 1, 2, 3
ETHERTYPE = 0x88B5  # of Space.send


def program(verdict: int, name: str = "test") -> int:
    """One that says the same of every frame."""
    code = _INSTRUCTION.pack(0xB7, 0, 0, verdict) + _INSTRUCTION.pack(0x95, 0, 0, 0)
    return libbpf.prog_load(XDP, name, code, XDP_ATTACH)


class Place:
    """A veth pair, programs, and where links are pinned."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.space = Space(unique("xdp"))
        self.attacher = DriverAttacher(path)
        self.passing, self.dropping = program(XDP_PASS), program(XDP_DROP)
        self.ear = self.space.run(self._listen)

    def attach(self, fd: int, device: str = "left") -> str:
        index = self.space.index(device)
        return self.space.run(lambda: self.attacher.attach(device, index, fd))

    def received(self) -> int:
        """Frames that got to the stack behind `left` since the last time."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while self.ear.recv(100):
                count += 1
        return count

    def _listen(self) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        made.bind(("left", ETHERTYPE))
        made.setblocking(False)
        return made

    def close(self) -> None:
        self.attacher.detach_all()
        self.ear.close()
        self.space.close()
        os.close(self.passing)
        os.close(self.dropping)


@pytest.fixture
def place() -> Iterator[Place]:
    path = MACHINE_BPFFS / unique("xdp")
    bpffs.mount()
    bpffs.make_directory(path / "links")
    made = Place(path)
    yield made
    made.close()
    bpffs.remove_tree(path)


def test_attached_replaced_and_detached(place: Place) -> None:
    assert place.attach(place.passing) == "attached"
    assert place.attach(place.passing) == "unchanged"
    (item,) = place.attacher.attachments()
    assert (item.ifname, item.ifindex) == ("left", place.space.index())
    assert item.prog_id == libbpf.prog_id(place.passing)
    assert place.attach(place.dropping) == "replaced"
    (item,) = place.attacher.attachments()
    assert item.prog_id == libbpf.prog_id(place.dropping)
    assert place.attacher.detach("left")
    assert not place.attacher.detach("left")
    assert place.attacher.attachments() == []
    assert place.attach(place.passing) == "attached"


def test_replacing_misses_no_packet(place: Place) -> None:
    """Two programs that drop all take turns while frames come in."""
    other = program(XDP_DROP)
    place.attach(place.dropping)
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            place.space.send(50)

    sender = threading.Thread(target=send)
    sender.start()
    attacher, index = DriverAttacher(place.path), place.space.index()
    for turn in range(200):
        fd = other if turn % 2 == 0 else place.dropping
        assert attacher.attach("left", index, fd) == "replaced"
    ended.set()
    sender.join()
    assert place.received() == 0
    place.attach(place.passing)
    place.space.send(5)
    assert place.received() == 5
    os.close(other)


def test_another_program_is_named_and_stays(place: Place) -> None:
    other = program(XDP_PASS, "stranger")
    index = place.space.index()
    link = place.space.run(lambda: syscall.xdp_link(other, index))
    with pytest.raises(KernelError, match=r"left has another XDP program, stranger \(id") as caught:
        place.attach(place.passing)
    assert caught.value.errno == errno.EBUSY
    assert place.attacher.attachments() == []
    assert syscall.xdp_link_info(link)[1] == index
    os.close(link)
    os.close(other)


def test_a_driver_without_native_mode_is_refused(place: Place) -> None:
    place.space.ip("link", "add", "name", "br0", "type", "bridge")
    with pytest.raises(KernelError):
        place.attach(place.passing, "br0")
    assert place.attacher.attachments() == []


def test_a_device_that_is_renamed_takes_its_pin_along(place: Place) -> None:
    place.attach(place.passing)
    place.space.ip("link", "set", "left", "down")
    place.space.ip("link", "set", "left", "name", "other")
    assert place.attach(place.passing, "other") == "unchanged"
    assert [item.ifname for item in place.attacher.attachments()] == ["other"]


def test_the_pin_of_a_device_that_is_gone_gives_way(place: Place) -> None:
    place.attach(place.passing)
    place.space.ip("link", "delete", "left")
    (item,) = place.attacher.attachments()
    assert (item.ifindex, item.prog_id) == (0, 0)
    place.space.add_pair()
    assert place.attach(place.passing) == "attached"
    place.space.ip("link", "delete", "left")
    assert place.attacher.detach("left")


def test_a_detached_link_is_made_anew(place: Place) -> None:
    place.attach(place.passing)
    libbpf.link_detach(str(place.path / "links" / "left-xdp"))
    assert place.attach(place.passing) == "attached"


def test_what_a_driver_can_do_is_its_own_word(place: Place) -> None:
    """A veth transmits once its peer takes frames one by one: with a program, or with GRO."""

    def ask(index: int) -> int:
        with DriverFeatures() as features:
            return features.of(index)

    left, right = place.space.index("left"), place.space.index("right")
    basic = netdev.BASIC | netdev.REDIRECT
    assert place.space.run(lambda: ask(left)) & (basic | netdev.TRANSMIT) == basic
    place.attach(place.passing, "right")
    assert place.space.run(lambda: ask(left)) & netdev.TRANSMIT
    place.attacher.detach("right")
    assert not place.space.run(lambda: ask(left)) & netdev.TRANSMIT
    with pytest.raises(KernelError):
        place.space.run(lambda: ask(right + 1000))


def test_live_frames_leave_by_a_device_that_transmits(place: Place) -> None:
    sending = program(XDP_TX)
    place.attach(place.passing)
    frame = (b"\2" * 12 + b"\x88\xb5").ljust(60, b"\0")
    index = place.space.index()

    def send() -> int:
        before = netlink.transmitted(index)
        testrun.send_live(sending, frame, index, 8)
        return netlink.transmitted(index) - before

    assert place.space.run(send) == 0  # the peer takes none
    place.attach(place.passing, "right")
    assert place.space.run(send) == 8
    os.close(sending)


def test_neighbours_that_were_not_heard_of_are_asked(place: Place) -> None:
    for name, state in (("169.254.9.2", "stale"), ("169.254.9.3", "permanent")):
        place.space.ip("addr", "replace", "169.254.9.1/24", "dev", "left")
        place.space.ip(
            *("neigh", "add", name, "lladdr", "02:00:00:00:00:09", "dev", "left"), "nud", state
        )
    index = place.space.index()
    assert place.space.run(lambda: netlink.ask_again(index, 10)) == 1
    assert place.space.run(lambda: netlink.ask_again(index, 10)) == 0  # it is being asked
