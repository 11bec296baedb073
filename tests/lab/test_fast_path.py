"""Established flows that pass a node's stack by: who does, and who must not."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from lbctl.agent.fastpath import LIFE_SECONDS, LOOK_SECONDS
from lbctl.datapath import clock
from lbctl.lab.cluster import Lab
from lbctl.lab.network import LINK_GATEWAYS
from lbctl.lab.topology import Pod
from tests.lab.support.external import Exposed
from tests.lab.support.fast import OPTIONS, forwarded, is_open, passed, said, wait_open
from tests.lab.support.labs import (
    TARGET,
    TCP,
    TIMEOUT,
    UDP,
    Responder,
    ask,
    connected,
    listen,
)
from tests.lab.support.transfers import (
    MTU_KNOWN,
    SMALL_MTU,
    Exchange,
    content,
    echoed,
    flush_routes,
    read,
    text_of,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

KINDS = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
# Seen from pod1 and from outside, which come to node1.
BACKENDS = {"same-node": "pod3", "other-node": "pod2"}
SERVICES = {"same-node": Exposed("near", 1), "other-node": Exposed("far", 2)}
# Clients, by which address they call, and where the backend is.
WAYS = [
    ("pod1", "cluster", "same-node"),
    ("pod1", "cluster", "other-node"),
    ("pod1", "ingress", "same-node"),
    ("outside", "node1", "same-node"),
    ("outside", "node1", "other-node"),
    ("outside", "ingress", "same-node"),
]
ROUNDS = 40
CONNECTIONS = 10
# Packets of a conversation that take the stack all the same: the handshake, those in which a CPU
# asks where to, and what is under way meanwhile.
FIRST = 24
# A connection that others' rules interrupt is tried again within so long.
PATIENCE = 8.0


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("fp", nodes=2, pods=2, options=OPTIONS)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        for place, service in SERVICES.items():
            service.publish(made, [BACKENDS[place]])
        wait_open(made)
        yield made
    made.down()


@contextlib.contextmanager
def conversation(
    lab: Lab, client: str, way: str, place: str, kind: socket.SocketKind, family: int
) -> Iterator[socket.socket]:
    """A connection that is established, and whose packets pass by now: devices that others' tests
    had away are looked at within a second."""
    address, port = SERVICES[place].where(lab, way, family)
    with connected(lab, client, address, kind, port=port) as sock:
        for number in range(3):
            assert ask(sock, f"hello {number}").server == BACKENDS[place]
        wait_until(lambda: is_passing(lab, sock))
        yield sock


def is_passing(lab: Lab, sock: socket.socket) -> bool:
    before = passed(lab)
    go_on(sock, 4)
    return passed(lab) >= before + 6


def go_on(sock: socket.socket, rounds: int = ROUNDS) -> None:
    for number in range(rounds):
        assert ask(sock, f"and {number}").text == f"and {number}"


def is_answered(sock: socket.socket) -> bool:
    """One question, briefly."""
    sock.settimeout(0.3)
    try:
        ask(sock, f"still there? {time.monotonic()}")
    except TimeoutError:
        return False
    finally:
        sock.settimeout(TIMEOUT)
    return True


@contextlib.contextmanager
def changed(lab: Lab, node: str, here: Sequence[str], back: Sequence[str]) -> Iterator[None]:
    """A command on a node, and what takes it back."""
    lab.exec(node, here, check=True)
    try:
        yield
    finally:
        lab.exec(node, back, check=True)


@FAMILY
@KINDS
@pytest.mark.parametrize(("client", "way", "place"), WAYS)
def test_an_established_flow_passes_the_stack_both_ways(
    lab: Lab, client: str, way: str, place: str, kind: socket.SocketKind, family: int
) -> None:
    with conversation(lab, client, way, place, kind, family) as sock:
        go_on(sock, 3)
        fast, slow = passed(lab), forwarded(lab, family)
        go_on(sock)
        assert passed(lab) - fast >= 2 * ROUNDS - FIRST
        assert forwarded(lab, family) - slow <= FIRST


@FAMILY
@pytest.mark.parametrize("place", BACKENDS)
def test_of_what_opens_and_closes_a_connection_the_syn_ack_alone_passes(
    lab: Lab, place: str, family: int
) -> None:
    """Its client waits for that; what it says of the flow is noted all the same."""
    address, port = SERVICES[place].where(lab, "cluster", family)
    with conversation(lab, "pod1", "cluster", place, TCP, family):
        fast, slow = passed(lab), forwarded(lab, family)
        for number in range(CONNECTIONS):
            with connected(lab, "pod1", address, TCP, port=port) as sock:
                assert ask(sock, f"once {number}").text == f"once {number}"
        # SYN, its ACK, and a FIN each way; what a CPU had to ask for first.
        assert forwarded(lab, family) - slow >= 4 * CONNECTIONS
        # SYN-ACK, question and answer.
        assert passed(lab) - fast >= 3 * CONNECTIONS - 4


@FAMILY
@pytest.mark.parametrize("place", BACKENDS)
def test_a_rule_that_others_make_is_obeyed_at_once(lab: Lab, place: str, family: int) -> None:
    """A chain alone does nothing; its first rule is heard of when it comes."""
    made = ["nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; }"]
    with conversation(lab, "pod1", "cluster", place, UDP, family) as sock:
        with changed(lab, "node1", made, ["nft", "delete table inet t"]):
            wait_until(lambda: is_open(lab))
            go_on(sock)
            lab.exec("node1", ["nft", f"add rule inet t f udp dport {TARGET} drop"], check=True)
            wait_until(lambda: not is_open(lab), LOOK_SECONDS)
            assert not is_answered(sock)
            # The file that tells is written once a second.
            wait_until(lambda: said(lab) == ("nftables: chain f of inet t has rules",))
        wait_until(lambda: is_open(lab))
        wait_until(lambda: is_answered(sock), PATIENCE)
        wait_until(lambda: is_passing(lab, sock))
        fast = passed(lab)
        go_on(sock)
        assert passed(lab) - fast >= 2 * ROUNDS - FIRST


@FAMILY
@pytest.mark.parametrize("tool", ["iptables-legacy", "ip6tables-legacy"])
def test_rules_of_the_old_iptables_are_obeyed_within_a_look(
    lab: Lab, tool: str, family: int
) -> None:
    """Nobody announces them."""
    rule = ["FORWARD", "-p", "udp", "--dport", str(TARGET), "-j", "DROP"]
    with conversation(lab, "pod1", "cluster", "same-node", UDP, family) as sock:
        with changed(lab, "node1", [tool, "-A", *rule], [tool, "-D", *rule]):
            wait_until(lambda: not is_open(lab), 3 * LOOK_SECONDS)
            if tool.startswith("ip6") != bool(family):
                wait_until(lambda: is_answered(sock), PATIENCE)
            else:
                assert not is_answered(sock)
        wait_until(lambda: is_open(lab))


@FAMILY
def test_a_rule_of_routing_stands_in_the_way(lab: Lab, family: int) -> None:
    rule = [f"-{(4, 6)[family]}", "rule"]
    made = ["ip", *rule, "add", "fwmark", "7", "table", "100"]
    gone = ["ip", *rule, "del", "fwmark", "7", "table", "100"]
    with changed(lab, "node1", made, gone):
        wait_until(lambda: "policy routing" in str(said(lab)))
        assert not is_open(lab)
    wait_until(lambda: is_open(lab))


@FAMILY
def test_a_route_that_changes_under_traffic_is_followed(lab: Lab, family: int) -> None:
    cidr = lab.node("node2").pod_cidrs[family]
    via = ["via", lab.node("node2").addresses[family]]
    ip = ["ip", f"-{(4, 6)[family]}", "route"]
    with conversation(lab, "pod1", "cluster", "other-node", UDP, family) as sock:
        go_on(sock)
        nowhere = [*ip, "replace", "blackhole", cidr]
        with contextlib.ExitStack() as undo:
            if family:  # which would add it to what is there
                lab.exec("node1", [*ip, "del", cidr], check=True)
            lab.exec("node1", nowhere, check=True)
            undo.callback(lambda: lab.exec("node1", [*ip, "del", cidr]))
            wait_until(lambda: not is_answered(sock), PATIENCE)
        lab.exec("node1", [*ip, "replace", cidr, *via], check=True)
        wait_until(lambda: is_answered(sock), PATIENCE)
        wait_until(lambda: is_passing(lab, sock))  # both ways, each when it is looked at again
        fast = passed(lab)
        go_on(sock)
        assert passed(lab) - fast >= 2 * ROUNDS - FIRST


@FAMILY
@pytest.mark.parametrize("place", BACKENDS)
def test_a_neighbour_that_changes_under_traffic_is_followed(
    lab: Lab, place: str, family: int
) -> None:
    backend = lab.find(BACKENDS[place])
    assert isinstance(backend, Pod)
    device = backend.interface if place == "same-node" else "eth0"
    address = (backend if place == "same-node" else lab.node("node2")).addresses[family]
    neighbour = [address, "dev", device]
    wrong = [
        "ip",
        "neigh",
        "replace",
        *neighbour,
        "lladdr",
        "02:00:00:00:00:99",
        "nud",
        "permanent",
    ]
    with conversation(lab, "pod1", "cluster", place, UDP, family) as sock:
        go_on(sock)
        with changed(lab, "node1", wrong, ["ip", "neigh", "del", *neighbour]):
            wait_until(lambda: not is_answered(sock), PATIENCE)
        wait_until(lambda: is_answered(sock), PATIENCE)
        go_on(sock)


@FAMILY
def test_a_pod_whose_link_goes_down_gets_nothing(lab: Lab, family: int) -> None:
    backend = lab.find(BACKENDS["same-node"])
    assert isinstance(backend, Pod)
    link, node = backend.interface, lab.node("node1")
    with conversation(lab, "pod1", "cluster", "same-node", UDP, family) as sock:
        go_on(sock)
        lab.exec("node1", ["ip", "link", "set", link, "down"], check=True)
        try:
            wait_until(lambda: not is_answered(sock), PATIENCE)
        finally:
            for command in (  # what went with it, as network.py has it
                ["link", "set", link, "up"],
                ["address", "replace", f"{LINK_GATEWAYS[1]}/64", "dev", link, "nodad"],
                ["route", "replace", backend.ipv4, "dev", link, "src", node.ipv4],
                ["route", "replace", backend.ipv6, "dev", link, "src", node.ipv6],
            ):
                lab.exec("node1", ["ip", *command], check=True)
        wait_until(lambda: is_answered(sock), PATIENCE)
        go_on(sock)


@FAMILY
def test_a_packet_has_one_hop_less_to_go(lab: Lab, family: int) -> None:
    """The node is a router, whichever way; what has come to its end it answers itself."""
    level, option = ((socket.SOL_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, 16))[family]
    with conversation(lab, "pod1", "cluster", "same-node", UDP, family) as sock:
        go_on(sock)
        fast = passed(lab)
        sock.setsockopt(level, option, 2)
        go_on(sock, 5)
        assert passed(lab) - fast >= 5
        sock.setsockopt(level, option, 1)
        assert not is_answered(sock)
        sock.setsockopt(level, option, 64)
        go_on(sock)


@pytest.fixture
def narrowed(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    """Forwarding goes by the route's MTU. A link's own would make its peer drop in silence."""
    where: str = request.param
    members = [pod.name for pod in lab.pods]
    flush_routes(lab, members)
    change_routes(lab, where, ["mtu", str(SMALL_MTU)])
    yield where
    change_routes(lab, where, [])
    flush_routes(lab, members)


def change_routes(lab: Lab, where: str, attributes: list[str]) -> None:
    node, pod = lab.node("node2"), lab.find("pod3")
    assert isinstance(pod, Pod)
    ways = {
        "nowhere": [],
        "between-nodes": [
            [cidr, "via", via] for cidr, via in zip(node.pod_cidrs, node.addresses, strict=True)
        ],
        "at-the-backend": [[address, "dev", pod.interface] for address in pod.addresses],
    }
    for way in ways[where]:
        lab.exec("node1", ["ip", "route", "replace", *way, *attributes], check=True)


@FAMILY
@pytest.mark.parametrize(
    ("narrowed", "place"),
    [
        ("nowhere", "same-node"),
        ("nowhere", "other-node"),
        ("between-nodes", "other-node"),
        ("at-the-backend", "same-node"),
    ],
    indirect=["narrowed"],
)
def test_a_large_transfer_passes_in_bundles_and_finds_its_size(
    lab: Lab, narrowed: str, place: str, family: int
) -> None:
    backend = lab.find(BACKENDS[place])
    exposed = Exposed(f"bulk-{place}", 3 + list(BACKENDS).index(place))
    exposed.publish(lab, [backend.name], target=TARGET + 1)
    address, port = exposed.where(lab, "cluster", family)
    with listen(lab, backend.name, backend.addresses[family], TARGET + 1, TCP) as server:
        exchange = Exchange(server)
        exchange.start()
        fast = passed(lab)
        with connected(lab, "pod1", address, TCP, port=port) as sock:
            sock.sendall(content("up"))
            mtu = sock.getsockopt(*MTU_KNOWN[family])
            got = read(sock)
        exchange.join(TIMEOUT)
    assert exchange.got == content("up")
    assert got == content("down")
    assert mtu == (SMALL_MTU if narrowed != "nowhere" else 1500)
    assert passed(lab) - fast > 50


@FAMILY
@pytest.mark.parametrize("size", [2000, 9000])
@pytest.mark.parametrize("place", BACKENDS)
def test_fragments_go_on_beside_what_passes(lab: Lab, place: str, size: int, family: int) -> None:
    with conversation(lab, "pod1", "cluster", place, UDP, family) as sock:
        for number in range(5):
            assert echoed(sock, text_of(number, size)).server == BACKENDS[place]
            go_on(sock, 2)


@FAMILY
def test_without_an_agent_the_stack_has_all_soon_and_with_the_next_nothing(
    lab: Lab, family: int
) -> None:
    """What nobody looks after any more ends by itself; connections go on."""
    with conversation(lab, "pod1", "cluster", "same-node", TCP, family) as sock:
        go_on(sock)
        lab.stop_agent("node1", 9)
        time.sleep(LIFE_SECONDS + clock.seconds(2))
        fast, slow = passed(lab), forwarded(lab, family)
        go_on(sock)
        assert passed(lab) == fast
        assert forwarded(lab, family) - slow >= 2 * ROUNDS
        lab.start_agent("node1")
        lab.wait_ready(["node1"])
        wait_until(lambda: is_open(lab))
        wait_until(lambda: is_passing(lab, sock))
        fast = passed(lab)
        go_on(sock)
        assert passed(lab) - fast >= 2 * ROUNDS - FIRST
        lab.stop_agent("node1")
        assert not is_open(lab)
        go_on(sock)
        lab.start_agent("node1")
        lab.wait_ready(["node1"])
    wait_open(lab)
