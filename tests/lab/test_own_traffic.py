"""What others own stays theirs: conversations of the node's own, its caches, other proxies."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator

import pytest

from lbctl.addresses import parse_address
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from lbctl.model.records import Protocol
from lbctl.trace.packets import Ends, frame
from tests.lab.support.labs import (
    PORT,
    TARGET,
    TCP,
    UDP,
    Responder,
    addresses,
    ask,
    client,
    connected,
    counted,
    endpoint,
    inside,
    publish,
)
from tests.lab.support.remote_sockets import process_in
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab
KINDS = {"tcp": TCP, "udp": UDP}
EACH = pytest.mark.parametrize("kind", KINDS)
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
NODE_PORT, EXTERNAL_PORT = 30090, 45990
CACHED, UNCACHED = 53, 9253


@pytest.fixture(scope="module")
def responder() -> Iterator[Responder]:
    with Responder() as made:
        yield made


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab], responder: Responder) -> Iterator[Lab]:
    made = make_lab("own", nodes=2, pods=1, cni="bridge")
    responder.serve(made, ["outside", *(pod.name for pod in made.pods)])
    shared(made)
    yield made
    made.down()


def shared(lab: Lab) -> None:
    """A service at addresses that the node has too: a node port, and external addresses."""
    ports = [Port(EXTERNAL_PORT, TARGET, name, name.upper(), NODE_PORT) for name in ("tcp", "udp")]
    own = list(lab.find("node1").addresses)
    objects = lab.service(
        "shared", ports, [endpoint(lab, "pod2")], spec={"type": "NodePort", "externalIPs": own}
    )
    lab.apply("shared", objects)
    lab.wait_programmed("default/shared", [endpoint(lab, "pod2")])


@FAMILY
@EACH
@pytest.mark.parametrize("port", [NODE_PORT, EXTERNAL_PORT])
@pytest.mark.parametrize("server", ["outside", "pod2"])
def test_the_node_may_call_from_a_port_that_is_a_services(
    lab: Lab, kind: str, family: int, port: int, server: str
) -> None:
    """And the service is there for others meanwhile."""
    where = lab.find(server).addresses[family]
    node = lab.find("node1").addresses[family]
    with connected(lab, "node1", where, KINDS[kind], port=TARGET, source=port) as sock:
        for number in range(5):
            reply = ask(sock, f"hello {number}")
            assert (reply.server, reply.client, reply.port) == (server, node, port)
            with connected(lab, "outside", node, KINDS[kind], port=port) as other:
                assert ask(other, "who are you?").server == "pod2"


@FAMILY
@pytest.mark.parametrize("port", [NODE_PORT, EXTERNAL_PORT])
@pytest.mark.parametrize("everywhere", [False, True], ids=["one address", "all addresses"])
def test_what_a_server_of_the_node_answers_the_node_is_no_call(
    lab: Lab, family: int, port: int, everywhere: bool
) -> None:
    """It meets no programs but those of its socket."""
    node = lab.find("node1").addresses[family]
    with process_in(lab, "node1") as process:
        server, client = process.open(UDP, family), process.open(UDP, family)
        server.bind([("0.0.0.0", "::")[family] if everywhere else node, 7300])
        client.bind([node, port])
        client.connect([node, 7300])
        for number in range(3):
            client.send(f"question {number}")
            text, who = server.recvfrom(1000)
            assert (text, who[:2]) == (f"question {number}", [node, port])
            server.sendto(f"answer {number}", who)
            assert client.recv(1000) == f"answer {number}"
        assert process.open(UDP, family).ask("who are you?", node, port) == "pod2"


@FAMILY
@EACH
def test_a_pod_behind_the_nodes_masquerading_may_have_a_services_port(
    lab: Lab, kind: str, family: int
) -> None:
    """As networks do for pods that call the world: by chance they take such a port."""
    where = lab.find("outside").addresses[family]
    pod = lab.find("pod1").addresses[family]
    word = ("ip", "ip6")[family]
    rule = f"{word} saddr {pod} oifname eth0 meta l4proto {kind} masquerade to :{NODE_PORT}"
    with (
        rules(lab, word, "postrouting", 100, rule),
        connected(lab, "pod1", where, KINDS[kind], port=TARGET) as sock,
    ):
        for number in range(5):
            reply = ask(sock, f"hello {number}")
            assert (reply.server, reply.port) == ("outside", NODE_PORT)


@contextlib.contextmanager
def rules(lab: Lab, family: str, hook: str, priority: int, rule: str) -> Iterator[None]:
    """A rule of another's on node1, in a table of its own."""
    table = f"{family} others"
    chain = f"{table} c {{ type nat hook {hook} priority {priority}; }}"
    lab.exec(
        "node1",
        ["nft", f"add table {table}; add chain {chain}; add rule {table} c {rule}"],
        check=True,
    )
    try:
        yield
    finally:
        lab.exec("node1", ["nft", f"delete table {table}"], check=True)


# ── a cache on the node, and another proxy ────────────────────────────────────────────────────


@contextlib.contextmanager
def address_on_the_node(lab: Lab, name: str) -> Iterator[None]:
    """As NodeLocal DNSCache takes the address of a service for its own."""
    lab.exec("node1", ["ip", "link", "add", "cache0", "type", "bridge"], check=True)
    try:
        for address, length in zip(addresses(name), ("32", "128"), strict=True):
            words = ["ip", "address", "add", f"{address}/{length}", "dev", "cache0"]
            lab.exec("node1", [*words, *["nodad"] * (":" in address)], check=True)
        yield
    finally:
        lab.exec("node1", ["ip", "link", "delete", "cache0"], check=True)


class Cache(Responder):
    """A responder's servers on the cluster IPs of a service."""

    def sit_on(self, lab: Lab, name: str, port: int) -> None:
        for address in addresses(name):
            for kind in (TCP, UDP):
                self.listen_at(lab, "node1", address, port, kind, "cache")


DNS = [
    Port(number, TARGET, f"{kind}{number}", kind.upper())
    for number in (CACHED, UNCACHED)
    for kind in ("tcp", "udp")
]


def answers(lab: Lab, member: str, address: str, port: int, kind: str) -> str:
    """Who answers there, by a socket of a process that is the member's own."""
    if member.startswith("node"):
        with process_in(lab, member) as process:
            try:
                sock = process.connect(KINDS[kind], address, port)
                return sock.ask("who are you?")
            except ConnectionRefusedError:
                return "refused"
    with client(lab, member, int(":" in address), KINDS[kind]) as own:
        try:
            own.connect((address, port))
            return ask(own, "who are you?").server
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:  # an IPv6 address takes no packets until it is known to be alone
            return "nobody"


@FAMILY
@EACH
def test_a_cache_on_the_node_answers_at_the_services_address(
    lab: Lab, family: int, kind: str
) -> None:
    """Without configuration, for the node and its pods; the service's other ports, other nodes,
    and all of it while the cache is down, as if there were none."""
    publish(lab, {"dns": ["pod2"]}, DNS)
    address = addresses("dns")[family]
    with address_on_the_node(lab, "dns"):
        assert answers(lab, "pod1", address, CACHED, kind) == "pod2"
        with Cache() as cache:
            cache.sit_on(lab, "dns", CACHED)
            # The agent hears of the address within a second or so.
            wait_until(lambda: answers(lab, "pod1", address, CACHED, kind) == "cache", 15)
            assert answers(lab, "pod1", address, 4444, kind) == "refused"  # by the stack
            for member in ("node1", "pod1", "outside"):
                assert answers(lab, member, address, CACHED, kind) == "cache", member
                assert answers(lab, member, address, UNCACHED, kind) == "pod2", member
            for member in ("node2", "pod2"):
                assert answers(lab, member, address, CACHED, kind) == "pod2", member
        for member in ("node1", "pod1"):
            assert answers(lab, member, address, CACHED, kind) == "pod2", member


@FAMILY
@EACH
def test_a_service_of_another_proxy_is_that_proxys(lab: Lab, family: int, kind: str) -> None:
    """Inside the service range, with rules of its own."""
    objects = lab.service("mesh", [Port(PORT, TARGET, kind, kind.upper())], [])
    objects[0]["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "mesh"}
    address, word = addresses("mesh")[family], ("ip", "ip6")[family]
    target = lab.find("pod1").addresses[family]
    target = f"[{target}]" if family else target
    rule = f"{word} daddr {address} {kind} dport {PORT} dnat to {target}:{TARGET}"
    lab.apply("mesh", objects)
    with rules(lab, word, "prerouting", -100, rule):

        def served() -> bool:
            with client(lab, "outside", family, KINDS[kind]) as sock:
                sock.settimeout(0.5)
                try:
                    sock.connect((address, PORT))
                    return ask(sock, "who are you?").server == "pod1"
                except TimeoutError:
                    return False

        wait_until(served, 15)
    lab.withdraw("mesh")


# ── a server of the node that answers from another address ────────────────────────────────────


@FAMILY
@pytest.mark.parametrize("size", [10, 5000], ids=["whole", "fragments"])
def test_a_server_bound_to_all_addresses_answers_as_the_service(
    lab: Lab, responder: Responder, family: int, size: int
) -> None:
    """The bridge's address is what the route to the pod has."""
    name, port = f"wild{family}{size}", 7100 + family + size % 7
    responder.listen_at(lab, "node1", ("0.0.0.0", "::")[family], port, UDP, "wild")
    publish(lab, {name: ["node1"]}, [Port(PORT, port, "udp", "UDP")])
    with connected(lab, "pod1", addresses(name)[family], UDP) as sock:
        for number in range(3):
            assert ask(sock, f"{number}" * size).server == "wild"


# ── frames for another machine ────────────────────────────────────────────────────────────────


@FAMILY
def test_a_frame_for_another_machine_is_not_refused(lab: Lab, family: int) -> None:
    """A SYN to a port that nobody serves, flooded by the switch to all its ports."""
    publish(lab, {"quiet": ["pod2"]})
    source, service = map(
        parse_address, (lab.find("outside").addresses[family], addresses("quiet")[family])
    )
    packet = frame(Ends(source, 40000, service, 4444), Protocol.TCP)[12:]

    def send(target: bytes) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("eth0", 0))
            sock.send(target + bytes.fromhex("02000000aa01") + packet)

    shown = lab.exec("node1", ["ip", "-json", "link", "show", "eth0"], check=True).stdout
    own = bytes.fromhex(json.loads(shown)[0]["address"].replace(":", ""))
    before = counted(lab, "node1", "unknown_port")
    inside(lab, "outside", lambda: send(bytes.fromhex("0200000000fe")))
    inside(lab, "outside", lambda: send(own))
    wait_until(lambda: counted(lab, "node1", "unknown_port") == before + 1, 5)
