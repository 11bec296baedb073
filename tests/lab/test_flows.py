"""What is left of earlier connections, forged packets, packets that cross: with real sockets."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from lbctl.inspect.flowfilter import FlowFilter, Target
from lbctl.inspect.flows import list_flows
from lbctl.inspect.opened import open_instance
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from tests.lab.support.labs import (
    PORT,
    TARGET,
    TCP,
    TIMEOUT,
    UDP,
    Responder,
    addresses,
    ask,
    client,
    connected,
    inside,
    new_socket,
    parse,
    publish,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
TCP_REPAIR = 19
SIP = (Port(5060, 5060, "sip", "UDP"),)
ports = itertools.count(22000)  # a fresh client port for each use


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("flows", nodes=2, pods=2)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        publish(made, {"web": ["pod3"], "far": ["pod2"]})
        publish(made, {f"sip-{pod.name}": [pod.name] for pod in made.pods}, SIP)
        yield made
    made.down()


def states(lab: Lab, port: int) -> list[str]:
    """Of the flows from this client port, as node1 knows them."""
    with open_instance(lab.pin_dir("node1")) as instance:
        rows = list_flows(instance, FlowFilter())
        return [row.state for row in rows if row.client.endswith(f":{port}")]


def vanish(sock: socket.socket) -> None:
    """The socket is gone, and nothing is said about it."""
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    sock.close()


@FAMILIES
def test_a_new_connection_from_the_port_of_one_that_vanished(lab: Lab, family: int) -> None:
    """Its endpoint left the service meanwhile; that its server still runs does not matter."""
    address, port = addresses("web")[family], next(ports)
    try:
        with connected(lab, "pod1", address, TCP, source=port) as old:
            assert ask(old, "old").server == "pod3"
            publish(lab, {"web": ["pod2"]})
            assert ask(old, "still here").server == "pod3"
            inside(lab, "pod1", lambda: vanish(old))
        with connected(lab, "pod1", address, TCP, source=port) as new:
            assert ask(new, "new").server == "pod2"
    finally:
        publish(lab, {"web": ["pod3"]})


def send_reset(source: tuple[str, int], target: tuple[str, int], number: int) -> None:
    """A RST that nobody's connection has sent, from the namespace of this thread."""
    six = ":" in source[0]
    family = socket.AF_INET6 if six else socket.AF_INET
    packed = [socket.inet_pton(family, address) for address, _ in (source, target)]
    ports = struct.pack("!HH", source[1], target[1])
    segment = ports + struct.pack("!IIBBHHH", number, 0, 5 << 4, 4, 512, 0, 0)
    pseudo = b"".join(packed) + struct.pack("!II", len(segment), socket.IPPROTO_TCP)
    total = sum(struct.unpack(f"!{len(pseudo + segment) // 2}H", pseudo + segment))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    segment = segment[:16] + struct.pack("!H", checksum) + segment[18:]
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(segment, (target[0], 0))


@FAMILIES
@pytest.mark.parametrize("side", ["client", "endpoint"])
def test_stray_resets_change_nothing(lab: Lab, family: int, side: str) -> None:
    address, port = addresses("web")[family], next(ports)
    pod1, pod3 = (lab.find(name).addresses[family] for name in ("pod1", "pod3"))
    with connected(lab, "pod1", address, TCP, source=port) as sock:
        ask(sock, "hello")
        for number in (1, 0x5EADBEEF, 0xFFFFFFFF):
            source, target = (pod1, port), (address, PORT)
            if side == "endpoint":
                source, target = (pod3, TARGET), (pod1, port)
            send = partial(send_reset, source, target, number)
            inside(lab, "pod1" if side == "client" else "pod3", send)
        # By chance one of 256 could be right behind data under way, of three numbers.
        assert states(lab, port)[0] in ("established", "closing")
        assert ask(sock, "still here").server == "pod3"
        assert states(lab, port) == ["established"]


@FAMILIES
def test_connections_that_both_ends_close_leave_nothing_closing(lab: Lab, family: int) -> None:
    """The server closes after its answer, the client when it has read that: FINs may cross."""
    address = addresses("web")[family]

    def call() -> None:
        for _ in range(2000):
            with new_socket(family, TCP) as sock:
                sock.connect((address, PORT))
                sock.sendall(b"bye\n")
                assert sock.recv(1000)

    workers = [threading.Thread(target=lambda: inside(lab, "pod1", call)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # The last of the servers' ends may come after the clients'.
    wait_until(
        lambda: set(open_states(lab, family)) <= {"time-wait", "fin-wait"},
        why=lambda: str(open_states(lab, family)),
    )


def open_states(lab: Lab, family: int) -> Counter[str]:
    """Of pod1's connections, as node1 knows them."""
    source = Target.parse(lab.find("pod1").addresses[family])
    with open_instance(lab.pin_dir("node1")) as instance:
        rows = list_flows(instance, FlowFilter(client=source, protocol=socket.IPPROTO_TCP))
        return Counter(row.state for row in rows)


@FAMILIES
@pytest.mark.parametrize("service", ["web", "far"])
def test_two_threads_of_a_socket_are_both_answered(lab: Lab, family: int, service: str) -> None:
    """A and AAAA of a resolver, as the first two datagrams of a socket."""
    address = addresses(service)[family]
    start = threading.Barrier(2)

    def send(socks: list[socket.socket]) -> None:
        for sock in socks:
            start.wait(TIMEOUT * 2)
            sock.send(b"AAAA")

    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connected(lab, "pod1", address, UDP)) for _ in range(300)]
        other = threading.Thread(target=send, args=(socks,))
        other.start()
        stack.callback(other.join)
        stack.callback(start.abort)
        for sock in socks:
            start.wait(TIMEOUT * 2)
            sock.send(b"A")
            # One pair at a time: the server's buffer has no room for all of them.
            assert {parse(sock.recv(1000)).text for _ in range(2)} == {"A", "AAAA"}


@FAMILIES
@pytest.mark.parametrize("peer", ["pod2", "pod3"], ids=["another node", "the same node"])
def test_peers_with_one_port_call_each_other(lab: Lab, family: int, peer: str) -> None:
    """Both serve and call from 5060 (as SIP does): the second calls before it has answered."""
    one, other = addresses("sip-pod1")[family], addresses(f"sip-{peer}")[family]
    own, theirs = (lab.find(name).addresses[family] for name in ("pod1", peer))
    near, far = (client(lab, name, family, UDP, 5060) for name in ("pod1", peer))
    with near as first, far:
        first.sendto(b"call 1", (other, 5060))
        assert far.recvfrom(100)[1][0] == own
        far.sendto(b"call 2", (one, 5060))
        text, caller = first.recvfrom(100)
        assert (text, caller[0]) == (b"call 2", theirs), "the peer itself, not a service"
        far.sendto(b"answer 1", (own, 5060))
        text, answered_by = first.recvfrom(100)
        assert (text, answered_by[:2]) == (b"answer 1", (other, 5060))
        first.sendto(b"answer 2", caller[:2])
        text, answered_by = far.recvfrom(100)
        assert (text, answered_by[:2]) == (b"answer 2", (one, 5060))
