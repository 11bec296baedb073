"""Hooks on a cgroup's sockets, and closing sockets by cookie, with tiny programs of the test."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ebpf import maps
from ebpf.errors import KernelError, MissingFeature
from ebpf.hooks import cgroup
from ebpf.hooks.cgroup import HOOKS, SocketAttacher
from ebpf.kernel import bpffs, libbpf, sockdiag
from ebpf.kernel.sockdiag import TCP, UDP, Diag, Target
from ebpf.layouts import SOCKET_HOOKS, Field, MapSpec, Record
from ebpf.maps import ProgramArray
from ebpf.programs import Generation
from lbctl.agent.sockets import SocketHooks
from lbctl.lab import cgroup as cgroups
from lbctl.lab import namespace

pytestmark = pytest.mark.kernel

NAME = f"so-{os.getpid()}"
SO_COOKIE = 57
# Joins the cgroup of its argument and says how a connect ends there.
CONNECT = """
import socket, sys, pathlib
pathlib.Path(sys.argv[1], "cgroup.procs").write_text("0")
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))
except OSError as error:
    print(error.errno)
else:
    print(0)
"""


def programs(verdict: int) -> dict[str, int]:
    """A program for each hook that allows (1) or, for calls, denies (0)."""
    made = {}
    for name, (kind, attach_type) in SOCKET_HOOKS.items():
        value = verdict if name.startswith(("connect", "sendmsg")) else 1
        code = struct.pack("=BBhi", 0xB7, 0, 0, value) + struct.pack("=BBhi", 0x95, 0, 0, 0)
        made[f"sock_{name}"] = libbpf.prog_load(kind, f"t_{name}", code, attach_type)
    return made


class Place:
    """A pin directory, two cgroups, and programs that allow and deny."""

    def __init__(self) -> None:
        bpffs.mount()
        self.pin_dir = Path("/sys/fs/bpf") / NAME
        (self.pin_dir / "links").mkdir(parents=True)
        self.cgroups = [cgroup.root() / f"{NAME}-{n}" for n in (1, 2)]
        for path in self.cgroups:
            path.mkdir()
        self.allow, self.deny = programs(1), programs(0)
        self.attacher = SocketAttacher(self.pin_dir)

    def connect(self, path: Path) -> int:
        done = subprocess.run(
            [sys.executable, "-c", CONNECT, str(path)],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return int(done.stdout)

    def close(self) -> None:
        bpffs.remove_tree(self.pin_dir)
        for path in self.cgroups:
            cgroups.remove(path)
        for fd in (*self.allow.values(), *self.deny.values()):
            os.close(fd)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    try:
        yield made
    finally:
        made.close()


def test_programs_act_on_their_cgroup_alone_and_are_replaced(place: Place) -> None:
    first, second = place.cgroups
    assert place.attacher.attach(place.deny, first)
    assert place.connect(first) == errno.EPERM
    assert place.connect(second) == 0
    assert [hook.name for hook in place.attacher.hooks()] == list(HOOKS)
    assert not place.attacher.attach(place.deny, first), "a second start changes nothing"
    assert place.attacher.attach(place.allow, first)
    assert place.connect(first) == 0
    assert {hook.cgroup_id for hook in place.attacher.hooks()} == {first.stat().st_ino}


def test_another_cgroup_takes_the_place_of_the_first(place: Place) -> None:
    first, second = place.cgroups
    place.attacher.attach(place.deny, first)
    assert place.attacher.attach(place.deny, second)
    assert (place.connect(first), place.connect(second)) == (0, errno.EPERM)


def test_detaching_ends_it_while_others_hold_the_link(place: Place) -> None:
    first = place.cgroups[0]
    place.attacher.attach(place.deny, first)
    held = libbpf.obj_get(place.attacher.hooks()[0].path)
    try:
        assert place.attacher.detach() == len(HOOKS)
        assert place.connect(first) == 0
        assert place.attacher.hooks() == []
        assert place.attacher.detach() == 0
    finally:
        os.close(held)


def test_a_cgroup_that_went_is_attached_anew(place: Place) -> None:
    first = place.cgroups[0]
    place.attacher.attach(place.deny, first)
    first.rmdir()
    deadline = time.monotonic() + 10  # the kernel lets go of it a moment later
    while {hook.cgroup_id for hook in place.attacher.hooks()} != {0}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.mkdir()
    assert place.attacher.attach(place.deny, first)
    assert place.connect(first) == errno.EPERM


def test_what_is_no_cgroup_is_named(place: Place, tmp_path: Path) -> None:
    with pytest.raises(MissingFeature, match="no directory of cgroup2"):
        place.attacher.attach(place.allow, tmp_path)
    with pytest.raises(KernelError, match="cannot open cgroup"):
        place.attacher.attach(place.allow, tmp_path / "missing")


def test_the_agent_tries_again(place: Place) -> None:
    """What was not possible, or was taken away, is done when the agent looks again."""
    word = Record("", 4, (Field("", 0, 4, 0, "u32"),))
    array = maps.create(MapSpec("t_programs", maps.PROG_ARRAY, 0, word, word), 1)
    assert isinstance(array, ProgramArray)
    late = place.cgroups[0]
    late.rmdir()
    hooks = SocketHooks(place.pin_dir, "host", late)
    hooks.refresh()  # nothing to attach yet
    hooks.attach(Generation(place.deny, {}, {"t_programs": array}))
    assert len(hooks.problems) == 1
    assert str(late) in hooks.problems[0]
    late.mkdir()
    hooks.refresh()
    assert (hooks.problems, place.connect(late)) == ([], errno.EPERM)
    for hook in place.attacher.hooks():
        libbpf.link_detach(hook.path)
    assert place.connect(late) == 0
    hooks.refresh()
    assert place.connect(late) == errno.EPERM
    array.close()


def test_the_hooks_of_this_kernel_are_found_out() -> None:
    assert cgroup.missing_hooks() == []
    assert sockdiag.can_destroy(TCP)
    assert sockdiag.can_destroy(UDP)


# Closing


@pytest.fixture
def netns() -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", NAME], check=True)
    try:
        subprocess.run(["ip", "-n", NAME, "link", "set", "lo", "up"], check=True)
        yield NAME
    finally:
        subprocess.run(["ip", "netns", "delete", NAME], check=True)


def target(sock: socket.socket) -> Target:
    cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
    host, port = sock.getpeername()[:2]
    mapped = f"::ffff:{host}" if ":" not in host else host
    return Target(cookie, socket.inet_pton(socket.AF_INET6, mapped), port.to_bytes(2, "big"))


def failed(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_exactly_the_named_sockets_are_closed(netns: str, protocol: int, address: str) -> None:
    kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def work() -> None:
        with socket.socket(socket.AF_INET6, kind) as server:
            server.bind(("::", 0))
            if protocol == TCP:
                server.listen(9)
            clients = [socket.socket(family, kind) for _ in range(4)]
            for client in clients:
                client.connect((address, server.getsockname()[1]))
            wanted = [target(client) for client in clients[:2]]
            elsewhere = Target(wanted[0].cookie, bytes(15) + b"\7", wanted[0].port)
            stranger = Target(1 << 60, wanted[0].address, wanted[0].port)
            with Diag() as diag:
                assert diag.close_sockets(protocol, [elsewhere, stranger]) == []
                assert set(diag.close_sockets(protocol, wanted)) == set(wanted)
                assert diag.close_sockets(protocol, wanted) == []
            assert [failed(c) for c in clients] == [errno.ECONNABORTED] * 2 + [0] * 2
            for client in clients:
                client.close()

    namespace.run_in(netns, work)


def test_other_namespaces_are_found_and_entered(netns: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.connect(("127.0.0.1", 9))

        def work() -> tuple[socket.socket, int]:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect(("127.0.0.1", 9))
            return sock, Path("/run/netns", netns).stat().st_ino

        there, inode = namespace.run_in(netns, work)
        with there:
            # In a thread: the one that searches ends up in the last namespace.
            def search() -> None:
                others = sockdiag.other_namespaces()
                assert [path.stat().st_ino for path in others].count(inode) == 1
                mine = [path for path in others if path.stat().st_ino == inode]
                closed, errors = sockdiag.close_everywhere({UDP: [target(there)]}, mine)
                assert (closed, errors) == ({UDP: [target_of_there]}, [])

            target_of_there = target(there)
            before = os.stat("/proc/thread-self/ns/net").st_ino
            with ThreadPoolExecutor(1) as pool:
                pool.submit(search).result(30)
            assert os.stat("/proc/thread-self/ns/net").st_ino == before
            assert (failed(there), failed(here)) == (errno.ECONNABORTED, 0)


def test_namespaces_that_may_not_be_entered_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def refuse(place: Path) -> bool:
        asked.append(place)
        raise KernelError("cannot enter another network namespace", errno.EPERM)

    monkeypatch.setattr(sockdiag, "_enter", refuse)
    gone = Target(1 << 60, bytes(16), b"\0\1")
    closed, errors = sockdiag.close_everywhere({UDP: [gone]}, [Path("/one"), Path("/two")])
    assert closed == {UDP: []}
    assert [error.message.partition(":")[0] for error in errors] == [
        "cannot enter another network namespace"
    ]
    assert asked == [Path("/one")]
