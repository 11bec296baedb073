"""What no service answers is refused at once, or dropped in silence where that is the rule."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from lbctl.datapath import consts
from lbctl.inspect.opened import open_instance
from lbctl.lab.cluster import Lab
from tests.lab.support.labs import (
    FAMILIES,
    PORT,
    TCP,
    UDP,
    Responder,
    addresses,
    ask,
    client,
    connected,
    counted,
    hear_back,
    inside,
    new_socket,
    publish,
)

pytestmark = pytest.mark.lab

KINDS = {"tcp": TCP, "udp": UDP}
UNKNOWN_PORT = 81
BURST = 200  # the kernel's own ICMP errors would stop after about 50
FREE = ("10.96.255.254", "fd00:10:96::fffe")  # in the service range, but nobody's
# linux/in.h, in6.h and errqueue.h
RECVERR = ((socket.SOL_IP, 11), (socket.IPPROTO_IPV6, 25))


@pytest.fixture(scope="module", params=["route", "bridge"])
def lab(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(request.param[0], cni=request.param, nodes=1, pods=2)
    with Responder() as responder:
        responder.serve(made, ["pod2"])
        publish(made, {"empty": [], "live": ["pod2"]})
        yield made
    made.down()


@pytest.fixture(params=["on", "off"])
def offload(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    """Whether the device has to finish checksums, also those of answers made from the packet."""
    lab.exec("pod1", ["ethtool", "-K", "eth0", "tx", request.param], check=True)
    yield request.param
    lab.exec("pod1", ["ethtool", "-K", "eth0", "tx", "on"], check=True)


REFUSALS = {
    "no-endpoint": ("empty", PORT, "no_endpoint"),
    "unknown-port": ("live", UNKNOWN_PORT, "unknown_port"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("why", REFUSALS)
@pytest.mark.usefixtures("offload")
def test_refused_at_the_first_packet(lab: Lab, why: str, family: int, kind: str) -> None:
    service, port, reason = REFUSALS[why]
    before = counted(lab, "node1", reason)
    for _ in range(3):
        sock = client(lab, "pod1", family, KINDS[kind])
        with sock, pytest.raises(ConnectionRefusedError):
            hear_back(sock, addresses(service)[family], port)
    # One packet each: none had to be sent again before the answer came.
    assert counted(lab, "node1", reason) == before + 3


def error_of(sock: socket.socket) -> int:
    """What the socket hears, at the latest when the kernel has had time for it."""
    poll = select.poll()
    poll.register(sock, 0)  # errors alone
    poll.poll(5000)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.usefixtures("offload")
def test_refusals_have_no_rate_limit(lab: Lab, family: int, kind: str) -> None:
    def burst() -> list[int]:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(new_socket(family, KINDS[kind])) for _ in range(BURST)]
            for sock in socks:
                sock.setblocking(False)
                sock.connect_ex((addresses("empty")[family], PORT))
                if sock.type == UDP:
                    sock.send(b"anyone there?")
            return [error_of(sock) for sock in socks]

    before = counted(lab, "node1", "no_endpoint")
    assert inside(lab, "pod1", burst) == [errno.ECONNREFUSED] * BURST
    assert counted(lab, "node1", "no_endpoint") == before + BURST


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.usefixtures("offload")
def test_the_service_itself_says_port_unreachable(lab: Lab, family: int) -> None:
    level, option = RECVERR[family]
    address = addresses("empty")[family]
    with client(lab, "pod1", family, UDP) as sock:
        sock.setsockopt(level, option, 1)
        sock.sendto(b"anyone there?", (address, PORT))
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1000)
        _, ancillary, _, destination = sock.recvmsg(1000, 1000, socket.MSG_ERRQUEUE)
    assert destination[:2] == (address, PORT)
    [(_, _, record)] = ancillary
    # struct sock_extended_err, then the address of whoever sent the error.
    number, origin, kind, code = struct.unpack_from("=IBBB", record)
    assert (number, origin) == (errno.ECONNREFUSED, 2 + family)
    assert (kind, code) == ((3, 3), (1, 4))[family]
    size = (4, 16)[family]
    start = 16 + (4, 8)[family]
    assert socket.inet_ntop(FAMILIES[family], record[start : start + size]) == address


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_ping_to_a_service_is_refused(lab: Lab, family: int) -> None:
    """By a datagram socket of ICMP, whose identifier the kernel fills in."""
    lab.exec("pod1", ["sysctl", "-q", "net.ipv4.ping_group_range=0 0"], check=True)
    request = (b"\x08\0", b"\x80\0")[family] + bytes(14)

    def ping() -> None:
        protocol = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)[family]
        with socket.socket(FAMILIES[family], UDP, protocol) as sock:
            sock.settimeout(5)
            sock.connect((addresses("live")[family], 0))
            sock.send(request)
            sock.recv(1000)

    with pytest.raises(ConnectionRefusedError):
        inside(lab, "pod1", ping)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_an_address_that_no_service_has_is_silent(lab: Lab, family: int, kind: str) -> None:
    before = counted(lab, "node1", "unallocated")
    with client(lab, "pod1", family, KINDS[kind]) as sock:
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            hear_back(sock, FREE[family], PORT)
    assert counted(lab, "node1", "unallocated") == before + 1


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_a_stranger_in_mid_stream_is_reset(lab: Lab, family: int) -> None:
    """After `lbctl flow flush` nobody knows the connection: it must not hang, nor move."""
    with connected(lab, "pod1", addresses("live")[family], TCP) as sock:
        assert ask(sock, "before").server == "pod2"
        with open_instance(lab.pin_dir("node1"), readonly=False) as instance:
            table = instance.flow_tables[family]
            cells = table.view()
            assert table.end(cells["place"], cells["generation"], consts.END_DELETED)
        with pytest.raises(ConnectionResetError):
            ask(sock, "after")


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_an_empty_service_that_gets_an_endpoint_is_served_at_once(lab: Lab, family: int) -> None:
    with client(lab, "pod1", family, UDP) as sock:
        sock.connect((addresses("coming")[family], PORT))
        publish(lab, {"coming": []})
        sock.send(b"anyone there?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1000)
        publish(lab, {"coming": ["pod2"]})
        assert ask(sock, "and now?").server == "pod2"
    with connected(lab, "pod1", addresses("coming")[family], TCP) as sock:
        assert ask(sock, "and so?").server == "pod2"
