"""More than fits into a packet, and the ICMP errors that go with it, through services."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from lbctl.lab.topology import Pod
from tests.lab.support.labs import (
    PORT,
    TARGET,
    TCP,
    TIMEOUT,
    UDP,
    Responder,
    addresses,
    client,
    connected,
    counted,
    endpoint,
    hear_back,
    listen,
    publish,
)
from tests.lab.support.transfers import (
    MTU_KNOWN,
    SMALL_MTU,
    Exchange,
    assert_backend_hears_of_the_end,
    content,
    echoed,
    flush_routes,
    learn_size,
    read,
    text_of,
)

pytestmark = pytest.mark.lab

# Seen from pod1, which is on node1.
PLACES = {"same-node": "pod3", "other-node": "pod2", "itself": "pod1"}
DEAF = ("pod3", "pod2", "pod1", "node1", "node2")  # backends of services that nobody listens for
CLOSED = (Port(PORT, TARGET + 9, "tcp"), Port(PORT, TARGET + 9, "udp", "UDP"))


@pytest.fixture(scope="module", params=["route", "bridge"])
def lab(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(request.param[0], cni=request.param, nodes=2, pods=2)
    for node in made.nodes:
        # A node limits the errors it sends itself to one a second and client, redirects (which a
        # pod gets that reaches itself) included: not what is tested here.
        for limit in ("ipv4.icmp_ratelimit", "ipv6.icmp.ratelimit"):
            made.exec(node.name, ["sysctl", "-q", f"net.{limit}=0"], check=True)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        publish(made, {place: [backend] for place, backend in PLACES.items()})
        publish(made, {f"deaf-{backend}": [backend] for backend in DEAF}, CLOSED)
        yield made
    made.down()


@pytest.fixture
def narrowed(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    """Somewhere on the way less fits through than both ends believe, and nobody knows it yet."""
    where: str = request.param
    flush_routes(lab, [pod.name for pod in lab.pods])
    change_routes(lab, where, "replace", ["mtu", str(SMALL_MTU)])
    yield where
    change_routes(lab, where, "replace", [])


def change_routes(lab: Lab, where: str, action: str, attributes: list[str]) -> None:
    """Forwarding goes by the route's MTU. A link's own would make its peer drop in silence."""
    ways: list[tuple[str, str, list[str]]] = []
    if where == "between-nodes":
        for here, there in (("node1", "node2"), ("node2", "node1")):
            cidrs, gateways = lab.node(there).pod_cidrs, lab.node(there).addresses
            ways += [(here, c, ["via", g]) for c, g in zip(cidrs, gateways, strict=True)]
    for place, pod in (("at-the-client", "pod1"), ("at-the-backend", "pod2")):
        found = lab.find(pod)
        if where == place and isinstance(found, Pod):
            link = "cni0" if lab.state.topology.cni == "bridge" else found.interface
            ways += [(found.node, address, ["dev", link]) for address in found.addresses]
    for node, destination, way in ways:
        lab.exec(node, ["ip", "route", action, destination, *way, *attributes], check=True)


BULK = Port(PORT, TARGET + 1, "bulk")
WAYS = [
    ("between-nodes", "other-node"),
    ("at-the-client", "other-node"),
    ("at-the-client", "same-node"),
    ("at-the-backend", "other-node"),
    ("nowhere", "itself"),
]


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize(("narrowed", "place"), WAYS, indirect=["narrowed"])
def test_a_large_transfer_finds_its_size(lab: Lab, narrowed: str, place: str, family: int) -> None:
    """Both ends begin with 1500 bytes; who sends into the small link must be told through the
    service, and nothing of what is sent may differ."""
    backend = endpoint(lab, PLACES[place])
    server = listen(lab, backend.name, backend.addresses[family], TARGET + 1, TCP)
    lab.apply("bulk", lab.service("bulk", [BULK], [backend]))
    lab.wait_programmed("default/bulk", [backend])
    before = counted(lab, "node1", "icmp_translated")
    exchange = Exchange(server)
    exchange.start()
    with server, connected(lab, "pod1", addresses("bulk")[family], TCP) as sock:
        sock.sendall(content("up"))
        mtu = sock.getsockopt(*MTU_KNOWN[family])
        got = read(sock)
    exchange.join(TIMEOUT)
    assert exchange.got == content("up")
    assert got == content("down")
    if narrowed in ("between-nodes", "at-the-backend"):
        assert mtu == SMALL_MTU
        assert counted(lab, "node1", "icmp_translated") > before
    if narrowed in ("between-nodes", "at-the-client") and place == "other-node":
        assert exchange.mtu == SMALL_MTU


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("size", [2000, 9000, 60000])
@pytest.mark.parametrize("place", PLACES)
def test_fragmented_datagrams_arrive_whole_both_ways(
    lab: Lab, place: str, size: int, family: int
) -> None:
    with connected(lab, "pod1", addresses(place)[family], UDP) as sock:
        for number in range(5):
            assert echoed(sock, text_of(number, size)).server == PLACES[place]


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("size", [1400, 9000])
@pytest.mark.parametrize("narrowed", ["between-nodes", "at-the-backend"], indirect=True)
@pytest.mark.usefixtures("narrowed")
def test_datagrams_too_large_for_the_way_get_through_once_both_ends_know(
    lab: Lab, size: int, family: int
) -> None:
    """The first ones are lost to "packet too big", which each sender must hear of; IPv4 cuts up
    fragments on the way, IPv6 never does."""
    with connected(lab, "pod1", addresses("other-node")[family], UDP) as sock:
        learn_size(sock, size)
        for number in range(10, 15):
            assert echoed(sock, text_of(number, size)).server == "pod2"


@pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("backend", DEAF)
def test_a_closed_port_of_the_backend_is_refused(
    lab: Lab, backend: str, family: int, kind: socket.SocketKind
) -> None:
    """A connected UDP socket only hears of it if the error quotes what it sent itself."""
    sock = client(lab, "pod1", family, kind)
    with sock, pytest.raises(ConnectionRefusedError):
        hear_back(sock, addresses(f"deaf-{backend}")[family], PORT)


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("place", PLACES)
def test_a_backend_hears_that_its_client_is_gone(lab: Lab, place: str, family: int) -> None:
    backend = endpoint(lab, PLACES[place])
    lab.apply("gone", lab.service("gone", [Port(PORT, TARGET + 1, "gone", "UDP")], [backend]))
    lab.wait_programmed("default/gone", [backend])
    with listen(lab, backend.name, backend.addresses[family], TARGET + 1, UDP) as server:
        server.settimeout(TIMEOUT)
        with connected(lab, "pod1", addresses("gone")[family], UDP) as sock:
            assert_backend_hears_of_the_end(server, sock)
