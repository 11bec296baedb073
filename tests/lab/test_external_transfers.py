"""Much data, fragments and ICMP errors between an outside client and a backend on another node.

Every packet is changed at both sides of node1, both ways: client and backend each see only node1.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.cluster import Lab
from tests.lab.support.external import Exposed
from tests.lab.support.labs import (
    TARGET,
    TCP,
    TIMEOUT,
    UDP,
    Responder,
    client,
    connected,
    counted,
    hear_back,
    listen,
)
from tests.lab.support.transfers import (
    MTU_KNOWN,
    NARROW,
    SMALL_MTU,
    Exchange,
    assert_backend_hears_of_the_end,
    content,
    echoed,
    learn_size,
    narrower,
    read,
    text_of,
)

pytestmark = pytest.mark.lab

BACKEND = "pod2"
ECHO = Exposed("echo", 1)
BULK = Exposed("bulk", 2)
DEAF = Exposed("deaf", 3)
WAYS = ("node1", "ingress", "cluster")
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("et", nodes=2, pods=1)
    for node in made.nodes:  # errors are what is tested, not how often a node sends them
        for limit in ("ipv4.icmp_ratelimit", "ipv6.icmp.ratelimit"):
            made.exec(node.name, ["sysctl", "-q", f"net.{limit}=0"], check=True)
    with Responder() as responder:
        responder.serve(made, [BACKEND])
        ECHO.publish(made, [BACKEND])
        BULK.publish(made, [BACKEND], target=TARGET + 1)
        DEAF.publish(made, [BACKEND], target=TARGET + 9)
        yield made
    made.down()


@pytest.fixture
def narrowed(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    where: str = request.param
    with narrower(lab, where, BACKEND, answering="node1"):
        yield where


@FAMILY
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("narrowed", NARROW, indirect=True)
def test_a_large_transfer_finds_its_size(lab: Lab, narrowed: str, way: str, family: int) -> None:
    backend = lab.find(BACKEND).addresses[family]
    address, port = BULK.where(lab, way, family)
    with listen(lab, BACKEND, backend, TARGET + 1, TCP) as server:
        exchange = Exchange(server)
        exchange.start()
        with connected(lab, "outside", address, TCP, port=port) as sock:
            sock.sendall(content("up"))
            mtu = sock.getsockopt(*MTU_KNOWN[family])
            got = read(sock)
        exchange.join(TIMEOUT)
    assert exchange.got == content("up")
    assert got == content("down")
    if way == "ingress":  # the client's own cache goes by the address it called
        assert mtu == (SMALL_MTU if narrowed in ("between-nodes", "at-the-backend") else 1500)
    if narrowed in ("between-nodes", "at-the-client"):
        assert exchange.mtu == SMALL_MTU


@FAMILY
@pytest.mark.parametrize("size", [2000, 9000, 60000])
@pytest.mark.parametrize("way", WAYS)
def test_fragmented_datagrams_arrive_whole_both_ways(
    lab: Lab, way: str, size: int, family: int
) -> None:
    address, port = ECHO.where(lab, way, family)
    with connected(lab, "outside", address, UDP, port=port) as sock:
        for number in range(5):
            reply = echoed(sock, text_of(number, size))
            assert (reply.server, reply.client) == (
                BACKEND,
                lab.find("node1").addresses[family],
            )


@FAMILY
@pytest.mark.parametrize("size", [1400, 9000])
@pytest.mark.parametrize(
    "narrowed", ["between-nodes", "at-the-backend", "at-the-client"], indirect=True
)
@pytest.mark.usefixtures("narrowed")
def test_datagrams_too_large_for_the_way_get_through_once_both_ends_know(
    lab: Lab, size: int, family: int
) -> None:
    address, port = ECHO.where(lab, "node1", family)
    with connected(lab, "outside", address, UDP, port=port) as sock:
        learn_size(sock, size)
        for number in range(10, 15):
            assert echoed(sock, text_of(number, size)).server == BACKEND


@FAMILY
@pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("way", [*WAYS, "node2", "external"])
def test_a_closed_port_of_the_backend_is_refused(
    lab: Lab, way: str, kind: socket.SocketKind, family: int
) -> None:
    """A connected UDP socket only hears of it if the error quotes what it sent itself and comes
    from the address it called."""
    before = counted(lab, "node1", "icmp_translated")
    with client(lab, "outside", family, kind) as sock, pytest.raises(ConnectionRefusedError):
        hear_back(sock, *DEAF.where(lab, way, family))
    if kind == UDP and way != "node2":
        assert counted(lab, "node1", "icmp_translated") == before + 2


@FAMILY
def test_a_backend_hears_that_its_client_is_gone(lab: Lab, family: int) -> None:
    backend = lab.find(BACKEND).addresses[family]
    with listen(lab, BACKEND, backend, TARGET + 1, UDP) as server:
        server.settimeout(TIMEOUT)
        address, port = BULK.where(lab, "node1", family)
        with connected(lab, "outside", address, UDP, port=port) as sock:
            seen_as = assert_backend_hears_of_the_end(server, sock)
        assert seen_as == lab.find("node1").addresses[family]
