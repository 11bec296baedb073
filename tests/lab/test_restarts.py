"""Agents that die, end, and come back: the data path goes on, and a new one changes nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lbctl import status
from lbctl.inspect.opened import open_instance
from lbctl.lab import agents
from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from lbctl.lab.state import AgentOptions
from tests.lab.support.labs import (
    PORT,
    TCP,
    UDP,
    Responder,
    addresses,
    ask,
    connected,
    inside,
    new_socket,
    publish,
)
from tests.support.map_contents import contents
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

KINDS = (TCP, UDP)
NEIGHBOURS = "net.ipv4.neigh.eth0.retrans_time_ms"
HELD = 4  # exit code of an agent whose pin directory another one has
# What calls of bpf(2) would change a map. Attached programs are links, not map entries.
WRITES = re.compile(r"BPF_MAP_(UPDATE|DELETE)_(ELEM|BATCH)|BPF_MAP_LOOKUP_AND_DELETE")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("r", nodes=2, pods=2)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        publish(made, {"steady": ["pod2", "pod3"], "self": ["pod1"], "empty": []})
        yield made
    made.down()


@pytest.fixture(autouse=True)
def all_agents_run(lab: Lab) -> Iterator[None]:
    """Whatever a test does to agents, the next one finds them running."""
    yield
    for node in lab.nodes:
        known = lab.agent(node.name)
        if known is None or not known.running:
            lab.start_agent(node.name)
    lab.wait_ready()


class Load:
    """Requests over new connections, kept ones and datagrams, in both families, until stopped."""

    def __init__(self, lab: Lab) -> None:
        self.made = 0
        self.lost: list[str] = []
        self._stop = threading.Event()
        self._lab = lab
        self._threads = [
            threading.Thread(target=inside, args=(lab, "pod1", work))
            for work in (self._short, self._long)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def more(self, requests: int) -> None:
        """Wait until so many more were made."""
        wanted, limit = self.made + requests, time.monotonic() + 30
        while self.made < wanted:
            assert time.monotonic() < limit, "requests hang"
            time.sleep(0.01)

    def _ask(self, sock: socket.socket, text: str) -> None:
        try:
            ask(sock, text)
        except OSError as error:
            self.lost.append(f"{text}: {error!r}")
        self.made += 1

    def _short(self) -> None:
        for number, (family, kind) in enumerate(itertools.cycle(itertools.product((0, 1), KINDS))):
            if self._stop.is_set():
                return
            with new_socket(family, kind) as sock:
                try:
                    sock.connect((addresses("steady")[family], PORT))
                except OSError as error:
                    self.lost.append(f"connecting {number}: {error!r}")
                    continue
                self._ask(sock, f"short {number}")
            self._stop.wait(0.002)

    def _long(self) -> None:
        with contextlib.ExitStack() as stack:
            socks = []
            for family, kind in itertools.product((0, 1), KINDS):
                sock = stack.enter_context(new_socket(family, kind))
                sock.connect((addresses("steady")[family], PORT))
                socks.append(sock)
            for number in itertools.count():
                for sock in socks:
                    self._ask(sock, f"long {number}")
                if self._stop.wait(0.01):
                    return


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_request_is_lost_while_agents_end_and_start(lab: Lab, end: int) -> None:
    with Load(lab) as load:
        load.more(100)
        for _ in range(2):
            for node in lab.nodes:
                lab.stop_agent(node.name, end)
            load.more(200)  # without any agent
            for node in lab.nodes:
                lab.start_agent(node.name)
            lab.wait_ready()
            load.more(100)
    assert load.lost == []


def test_no_request_is_lost_when_an_agent_dies_while_it_starts(lab: Lab) -> None:
    """Killed a little later each time, so that every part of the start is cut off somewhere."""
    with Load(lab) as load:
        for milliseconds in range(150, 1200, 150):
            lab.stop_agent("node1", signal.SIGKILL)
            agent = lab.start_agent("node1")
            time.sleep(milliseconds / 1000)
            assert agent.kill()
        load.more(100)
        lab.restart_agent("node1")
        lab.wait_ready()
        load.more(100)
    assert load.lost == []


def test_a_second_agent_is_told_who_holds_the_directory(lab: Lab) -> None:
    agent = lab.agent("node1")
    assert agent is not None
    arguments = agents.arguments(lab.paths, lab.node("node1"), AgentOptions())
    done = lab.exec("node1", lbctl_command(*arguments))
    assert done.returncode == HELD
    assert str(agent.pid) in done.stderr
    assert str(lab.pin_dir("node1")) in done.stderr
    assert agent.running
    with connected(lab, "pod1", addresses("steady")[0], TCP) as sock:
        ask(sock, "still there?")


def test_a_restart_without_change_writes_to_no_map(
    make_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    """Contents compared, since stores to mapped memory are no system calls; and calls counted,
    since an entry could be written again as it was. A lab without traffic: no flow ends meanwhile.
    """
    if not shutil.which("strace"):
        pytest.skip("strace is missing, which counts the system calls (package strace)")
    lab = make_lab("quiet", nodes=1, pods=2)
    publish(lab, {f"service{number}": ["pod1", "pod2"] for number in range(10)} | {"empty": []})
    lab.stop_agent("node1")
    before = held(lab)
    assert min(len(before[name]) for name in ("frontends", "names")) >= 40
    log = tmp_path / "strace"
    agent = lbctl_command(*agents.arguments(lab.paths, lab.node("node1"), AgentOptions()))
    trace = ["strace", "-f", "-qq", "-e", "trace=bpf", "-o", str(log), *agent]
    with (tmp_path / "agent").open("w") as output:
        process = lab.popen("node1", trace, stdout=output, stderr=output)
    try:
        wait_until(lambda: said_ready(lab), 60, (tmp_path / "agent").read_text)
        time.sleep(1.5)  # what it does at leisure, it does now
        after = held(lab)
    finally:
        os.kill(status.running_agent(lab.pin_dir("node1")) or process.pid, signal.SIGTERM)
        process.wait(10)
    assert [name for name in before if before[name] != after[name]] == []
    calls = log.read_text().splitlines()
    assert any("BPF_OBJ_GET" in call for call in calls), "strace saw nothing"
    assert [call for call in calls if WRITES.search(call)] == []


def held(lab: Lab) -> dict[str, Any]:
    with open_instance(lab.pin_dir("node1")) as instance:
        return contents(instance)


def said_ready(lab: Lab) -> bool:
    said = status.read(lab.pin_dir("node1"))
    return bool(said and said.ready and said.pid == status.running_agent(lab.pin_dir("node1")))


def test_a_pod_that_started_without_an_agent_is_served_by_the_next(lab: Lab) -> None:
    address = addresses("steady")[0]
    lab.stop_agent("node1", signal.SIGKILL)
    pod = lab.add_pod("node1")
    sock = inside(lab, pod.name, lambda: new_socket(0, TCP))
    sock.settimeout(0.3)
    with sock, pytest.raises(OSError, match=r"timed out|unreachable|No route"):
        sock.connect((address, PORT))
    lab.start_agent("node1")
    lab.wait_ready()
    for family, kind in itertools.product((0, 1), KINDS):
        with connected(lab, pod.name, addresses("steady")[family], kind) as sock:
            assert ask(sock, "hello").client == pod.addresses[family]
    lab.remove_pod(pod.name)


def test_how_soon_a_new_pod_can_connect(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    """From the moment the node sees its link up to the first connection to a service that works."""
    took, pods = [], []
    for _ in range(5):
        with LinkUp(lab, "node1") as watch:
            # Not one that takes an earlier one's address, whose last packets the node still has.
            pods.append(pod := lab.add_pod("node1"))
            # While the node attaches programs, its side of the link may not send yet: an answer to
            # ARP that is lost then is asked for again after a second, unless told otherwise.
            lab.exec(pod.name, ["sysctl", "-q", f"{NEIGHBOURS}=10"], check=True)
            connected_at = inside(lab, pod.name, first_connection)
            up_at = watch.up_at(pod.interface)
        took.append(round((connected_at - up_at) * 1000, 1))
    for pod in pods:
        lab.remove_pod(pod.name)
    record_property("milliseconds from link up to first connection", took)
    print(f"\nmilliseconds from link up to the first connection of a new pod: {took}")


def first_connection() -> float:
    """When a connection to the service first worked, in a pod that is about to be served."""
    limit = time.monotonic() + 5
    while True:
        with new_socket(0, TCP) as sock:
            sock.settimeout(0.02)  # not a retransmission's second
            try:
                sock.connect((addresses("steady")[0], PORT))
            except OSError:
                assert time.monotonic() < limit, "a new pod is not served"
                continue
            return time.monotonic()


class LinkUp:
    """Listens to a node's netlink messages for when links come up."""

    _RTMGRP_LINK = 1
    _IFF_LOWER_UP = 1 << 16

    def __init__(self, lab: Lab, node: str) -> None:
        self._socket = inside(lab, node, self._subscribe)
        self._times: list[tuple[float, bytes]] = []
        self._thread = threading.Thread(target=self._listen)

    def _subscribe(self) -> socket.socket:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        made.bind((0, self._RTMGRP_LINK))
        made.settimeout(0.1)
        return made

    def __enter__(self) -> LinkUp:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._thread.join(10)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                with contextlib.suppress(TimeoutError):
                    message = self._socket.recv(65536)
                    # struct nlmsghdr, then ifi_flags in struct ifinfomsg.
                    [flags] = struct.unpack_from("=I", message, 16 + 8)
                    if flags & self._IFF_LOWER_UP:
                        self._times.append((time.monotonic(), message))

    def up_at(self, link: str) -> float:
        """When the link of this name came up, on the monotonic clock."""
        name, limit = link.encode() + b"\0", time.monotonic() + 5
        while not (found := [at for at, message in self._times if name in message]):
            assert time.monotonic() < limit, f"{link} did not come up"
            time.sleep(0.01)
        return min(found)
