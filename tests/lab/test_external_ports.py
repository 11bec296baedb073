"""Source ports for traffic from outside: a client keeps its own where that is free; else there is
the node's range, which is used up, reported, and free again."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from ebpf.maps import ArrayMap
from lbctl.agent import auditing
from lbctl.inspect.flowfilter import FlowFilter
from lbctl.inspect.flows import FlowRow, list_flows
from lbctl.inspect.opened import open_instance
from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from tests.lab.support.external import SHORT, Exposed
from tests.lab.support.labs import TCP, UDP, Responder, ask, client, set_linger

pytestmark = pytest.mark.lab

FIRST, LAST = 61000, 61007
ROOM = LAST - FIRST + 1
SERVICE = Exposed("far", 1)
OTHER = Exposed("farther", 2)
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
ports = itertools.count(20000)  # of clients: none has what is remembered of another's


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LBCTL_MASK", auditing.MASK)  # it would put the range right again
        made = make_lab("ep", nodes=2, pods=2)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        SERVICE.publish(made, ["pod2"])
        OTHER.publish(made, ["pod4"])
        # As an agent would do that was given so few; the running one does not look.
        with open_instance(made.pin_dir("node1"), readonly=False) as instance:
            config = instance.config
            assert isinstance(config, ArrayMap)
            config.records["port_max"][0] = LAST
            assert config.records["port_min"][0] == FIRST
        yield made
    made.down()


def exhausted(lab: Lab) -> int:
    """As `lbctl status` reports it."""
    command = lbctl_command("status", "-o", "json", "--pin-dir", str(lab.pin_dir("node1")))
    shown = json.loads(lab.exec("node1", command, check=True).stdout)
    found: int = shown["reasons"].get("ports_exhausted", 0)
    return found


def keep_ports(
    lab: Lab,
    stack: contextlib.ExitStack,
    service: Exposed,
    family: int,
    kind: socket.SocketKind,
    count: int,
) -> list[int]:
    """The ports of so many clients that are open, and of which the backend sees their own. Whoever
    calls by another of the service's addresses from the same port gets one of the range."""
    kept = []
    for _ in range(count):
        kept.append(next(ports))
        sock = stack.enter_context(client(lab, "outside", family, kind, kept[-1]))
        sock.connect(service.where(lab, "node1", family))
        assert ask(sock, "hello").port == kept[-1]
    return kept


def connect(
    lab: Lab, stack: contextlib.ExitStack, service: Exposed, family: int, port: int
) -> socket.socket:
    sock = stack.enter_context(client(lab, "outside", family, TCP, port))
    sock.connect(service.where(lab, "ingress", family))
    return sock


@FAMILY
def test_beyond_the_range_connections_are_dropped_until_others_end(lab: Lab, family: int) -> None:
    before = exhausted(lab)
    with contextlib.ExitStack() as keepers:
        own = keep_ports(lab, keepers, SERVICE, family, TCP, ROOM)
        late = keep_ports(lab, keepers, SERVICE, family, TCP, ROOM // 2)
        with contextlib.ExitStack() as stack:
            socks = [connect(lab, stack, SERVICE, family, port) for port in own]
            got = {ask(sock, "hello").port for sock in socks}
            assert got == set(range(FIRST, LAST + 1))
            for port in late[:2]:
                with client(lab, "outside", family, TCP, port) as sock:
                    sock.settimeout(SHORT)
                    with pytest.raises(TimeoutError):
                        sock.connect(SERVICE.where(lab, "ingress", family))
            assert exhausted(lab) >= before + 2
            # The others go on, and another backend has ports of its own.
            assert {ask(sock, "still there?").port for sock in socks} == got
            assert ask(connect(lab, stack, OTHER, family, own[0]), "hello").server == "pod4"
            for sock in socks[: ROOM // 2]:
                assert ask(sock, "bye").text == "bye"  # the server closes first
                assert sock.recv(1) == b""
                sock.close()
            again = [connect(lab, stack, SERVICE, family, port) for port in late]
            assert {ask(sock, "hello").port for sock in (*again, *socks[ROOM // 2 :])} == got
        # All closed by the client now; the server's end follows when it gets to it.
        after = exhausted(lab)
        for _ in range(2):
            wait_until_closed(lab)
            with contextlib.ExitStack() as stack:
                socks = [connect(lab, stack, SERVICE, family, port) for port in own]
                assert {ask(sock, "hello").port for sock in socks} == got
    assert exhausted(lab) == after


def wait_until_closed(lab: Lab) -> None:
    """Until no TCP flow by the range is open or half closed: its port is taken until then."""
    deadline = time.monotonic() + 10
    with open_instance(lab.pin_dir("node1")) as instance:
        while not all(map(is_done, list_flows(instance, FlowFilter(protocol=6)))):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def is_done(flow: FlowRow) -> bool:
    return flow.state in ("time-wait", "reset") or not flow.client_port


@FAMILY
def test_datagrams_share_the_range_among_themselves(lab: Lab, family: int) -> None:
    before = exhausted(lab)
    where = SERVICE.where(lab, "ingress", family)
    with contextlib.ExitStack() as stack:
        got = set()
        *own, late = keep_ports(lab, stack, SERVICE, family, UDP, ROOM + 1)
        for port in own:
            sock = stack.enter_context(client(lab, "outside", family, UDP, port))
            sock.connect(where)
            got.add(ask(sock, "hello").port)
        assert got == set(range(FIRST, LAST + 1))
        with client(lab, "outside", family, UDP, late) as sock:
            sock.settimeout(SHORT)
            sock.connect(where)
            with pytest.raises(TimeoutError):
                ask(sock, "no port")
    assert exhausted(lab) == before + 1


@pytest.fixture
def short_memory(lab: Lab) -> Iterator[None]:
    """What is reset, and datagrams, are remembered for a second."""
    names = ("reset_timeout", "datagram_timeout", "datagram_stream_timeout")
    with open_instance(lab.pin_dir("node1"), readonly=False) as instance:
        config = instance.config
        assert isinstance(config, ArrayMap)
        before = {name: int(config.records[name][0]) for name in names}
        for name in names:
            config.records[name][0] = 1
        yield
        for name in names:
            config.records[name][0] = before[name]


@pytest.mark.usefixtures("short_memory")
def test_what_nobody_closed_comes_back_with_the_sweep(lab: Lab) -> None:
    """A reset may be a forgery and datagrams have no end: time must pass, then a sweep."""
    ways = list(itertools.product((0, 1), (TCP, UDP)))
    late: dict[tuple[int, socket.SocketKind], int] = {}
    with contextlib.ExitStack() as keepers:
        for family, kind in ways:
            *own, last = keep_ports(lab, keepers, OTHER, family, kind, ROOM + 1)
            late[family, kind] = last
            with contextlib.ExitStack() as stack:
                for port in own:
                    sock = stack.enter_context(client(lab, "outside", family, kind, port))
                    sock.connect(OTHER.where(lab, "ingress", family))
                    ask(sock, "hello")
                    if kind == TCP:
                        set_linger(sock)
            assert not answered(lab, family, kind, last)
        deadline = time.monotonic() + 45
        while ways := [way for way in ways if not answered(lab, *way, late[way])]:
            assert time.monotonic() < deadline, ways
            time.sleep(0.5)


def answered(lab: Lab, family: int, kind: socket.SocketKind, port: int) -> bool:
    with client(lab, "outside", family, kind, port) as sock:
        sock.settimeout(SHORT)
        try:
            sock.connect(OTHER.where(lab, "ingress", family))
            return ask(sock, "any port left?").server == "pod4"
        except TimeoutError:
            return False
