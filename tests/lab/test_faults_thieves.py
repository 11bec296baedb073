"""Objects that want an address which is another's: who has it goes by rank, alike everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import JsonObject, Port
from tests.lab.support.bystanders import Bystanders, bystanders, steady_lab, targets
from tests.lab.support.faults import (
    NEW,
    OLD,
    aged,
    answers,
    answers_process,
    fresh_agent,
    frontends,
    service,
    wait_answers,
    wait_frontends,
    wait_said,
)
from tests.lab.support.labs import (
    PORT,
    TARGET,
    TCP,
    UDP,
    addresses,
    ask,
    client,
    endpoint,
)
from tests.lab.support.remote_sockets import process_in
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

NODES = ("node1", "node2")
SERVERS = ("pod2", "pod3")
OWNER = "owner"  # its endpoint is pod3, a thief's is pod4
OTHER = "other"
BETWEEN = "2023-01-01T00:00:00Z"
CONTESTED = ("192.0.2.77", "2001:db8:2::77")
TIMES = {"older": OLD, "newer": NEW}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    with steady_lab(make_lab, "ft", SERVERS, nodes=2, pods=2) as made:
        yield made


@pytest.fixture(scope="module")
def traffic(lab: Lab) -> Iterator[Bystanders]:
    with bystanders(lab, targets(lab, SERVERS)) as made:
        yield made


@pytest.fixture(autouse=True)
def nobody_else_is_harmed(lab: Lab, traffic: Bystanders) -> Iterator[None]:
    yield
    for name in (OWNER, OTHER, "thief"):
        lab.withdraw(name)
        lab.wait_gone(f"default/{name}")
    for node in NODES:
        known = lab.agent(node)
        if known is None or not known.running:
            lab.start_agent(node)
    lab.wait_ready()
    traffic.unharmed()


def owner(lab: Lab) -> list[JsonObject]:
    return aged(service(lab, OWNER, ["pod3"]), BETWEEN)


def thief(
    lab: Lab, wanted: tuple[str, ...], created: str, way: str = "external"
) -> list[JsonObject]:
    """A service of pod4 that asks for these addresses in one of three ways; as ClusterIP it is
    not even programmed wrongly by an API server, but a file may say anything."""
    if way == "external":
        made = service(lab, "thief", ["pod4"], spec={"externalIPs": list(wanted)})
    else:
        made = service(lab, "thief", ["pod4"], spec={"type": "LoadBalancer"}, ingress=wanted)
    return aged(made, created)


def wait_known(lab: Lab, name: str, nodes: tuple[str, ...] = NODES) -> None:
    """Until a node has seen an object: its own ClusterIP is served, which nobody disputes."""
    own = addresses(name)[0]
    for node in nodes:
        wait_frontends(lab, node, name, {(own, PORT)})


def everyone(lab: Lab, wanted: tuple[str, ...]) -> set[str]:
    """Who answers at these addresses: pods of both nodes, and a process of a node."""
    found = set()
    for address in wanted:
        for member in ("pod1", "pod2"):
            found |= answers(lab, member, address, times=2)
        with process_in(lab, "node1") as process:
            found |= answers_process(process, address, PORT, times=1)
    return found


@pytest.mark.parametrize("way", ["external", "ingress"])
@pytest.mark.parametrize("age", TIMES)
def test_the_owner_of_a_cluster_ip_keeps_it(
    lab: Lab, traffic: Bystanders, age: str, way: str
) -> None:
    """The thief comes to a service with traffic, whose clients accept no other answer."""
    lab.apply("thief", thief(lab, addresses("steady"), TIMES[age], way))
    wait_known(lab, "thief")
    traffic.unharmed()
    assert everyone(lab, addresses("steady")) <= set(SERVERS)
    for node in NODES:
        wait_said(lab, node, "default/thief", "default/steady")


@pytest.mark.parametrize("age", TIMES)
def test_a_thief_that_was_there_first_loses_to_the_owner_again_and_again(
    lab: Lab, age: str
) -> None:
    """The owner comes, is deleted, and is made again; what the thief has meanwhile is no matter."""
    lab.apply("thief", thief(lab, addresses(OWNER), TIMES[age]))
    wait_known(lab, "thief")
    for _ in range(2):
        lab.apply(OWNER, owner(lab))
        lab.wait_programmed(f"default/{OWNER}", [endpoint(lab, "pod3")])
        assert everyone(lab, addresses(OWNER)) == {"pod3"}
        lab.withdraw(OWNER)
        lab.wait_gone(f"default/{OWNER}")


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_a_socket_that_the_thief_answered_goes_to_the_owner(lab: Lab, family: int) -> None:
    """Its flow is not idle, and the thief's pod goes on serving: a beat decides."""
    lab.apply("thief", thief(lab, addresses(OWNER), OLD))
    wait_known(lab, "thief")
    with client(lab, "pod1", family, UDP) as sock:
        sock.connect((addresses(OWNER)[family], PORT))
        assert ask(sock, "first").server == "pod4"
        lab.apply(OWNER, owner(lab))
        lab.wait_programmed(f"default/{OWNER}", [endpoint(lab, "pod3")])
        wait_until(lambda: ask(sock, "again").server == "pod3")


@pytest.mark.parametrize("node_port", [False, True], ids=["external", "node-port"])
def test_among_equals_the_older_object_has_it_on_every_node(lab: Lab, node_port: bool) -> None:
    """node1 hears of the newer one first, node2 of both at once; a restart changes nothing."""

    def claim(name: str, member: str, created: str) -> list[JsonObject]:
        if node_port:
            ports = [
                Port(PORT, TARGET, "tcp", "TCP", 30777),
                Port(PORT, TARGET, "udp", "UDP", 30777),
            ]
            return aged(service(lab, name, [member], ports, {"type": "NodePort"}), created)
        spec = {"externalIPs": list(CONTESTED)}
        return aged(service(lab, name, [member], spec=spec), created)

    def who(member: str, node: str) -> set[str]:
        places = lab.node(node).addresses if node_port else CONTESTED
        port = 30777 if node_port else PORT
        return set().union(*(answers(lab, member, address, port, times=2) for address in places))

    lab.stop_agent("node2")
    lab.apply(OTHER, claim(OTHER, "pod4", NEW))
    wait_known(lab, OTHER, ("node1",))
    lab.apply(OWNER, claim(OWNER, "pod3", OLD))
    wait_known(lab, OWNER, ("node1",))
    wait_until(lambda: who("pod1", "node1") == {"pod3"})
    lab.start_agent("node2")
    lab.wait_ready()
    wait_until(lambda: who("pod2", "node2") == {"pod3"})
    for turn in itertools.count():
        assert who("pod1", "node1") == {"pod3"}
        assert who("pod2", "node2") == {"pod3"}
        for node in NODES:
            wait_said(lab, node, f"default/{OWNER}", f"default/{OTHER}")
        if turn == 1:
            break
        for node in NODES:
            lab.restart_agent(node)
        lab.wait_ready()
    lab.withdraw(OWNER)
    lab.wait_gone(f"default/{OWNER}")
    wait_until(lambda: who("pod1", "node1") == who("pod2", "node2") == {"pod4"})


def test_of_two_of_one_age_the_uid_decides(lab: Lab) -> None:
    spec = {"externalIPs": list(CONTESTED)}
    second = aged(service(lab, OTHER, ["pod4"], spec=spec), OLD, "bbbb-2")
    first = aged(service(lab, OWNER, ["pod3"], spec=spec), OLD, "aaaa-1")
    lab.apply(OTHER, second)
    wait_known(lab, OTHER)
    lab.apply(OWNER, first)
    wait_known(lab, OWNER)
    for member in ("pod1", "pod2"):
        wait_answers(lab, member, CONTESTED[0], {"pod3"})


def test_service_show_tells_the_loser_who_has_it(lab: Lab) -> None:
    spec = {"externalIPs": list(CONTESTED)}
    lab.apply(OWNER, aged(service(lab, OWNER, ["pod3"], spec=spec), OLD))
    lab.apply(OTHER, aged(service(lab, OTHER, ["pod4"], spec=spec), NEW))
    for node in NODES:
        wait_said(lab, node, f"default/{OWNER}", f"default/{OTHER}", CONTESTED[0])
        show = lbctl_command(
            "service", "show", f"default/{OTHER}", "--pin-dir", str(lab.pin_dir(node))
        )
        said = lab.exec(node, show).stdout
        assert f"default/{OWNER}" in said, said
        assert CONTESTED[0] in said, said


def test_two_objects_whose_texts_come_to_one_name_are_two(lab: Lab) -> None:
    """Service "pair" with port "http", and service "pair:http" with a port that has no name."""
    one = service(lab, "pair", ["pod3"], [Port(PORT, TARGET, "http")])
    two = service(lab, "pair:http", ["pod4"], [Port(PORT, TARGET)], addresses=("10.96.0.99",))
    lab.apply(OWNER, one)
    lab.apply(OTHER, two)
    lab.wait_programmed("default/pair", [endpoint(lab, "pod3")])
    try:
        for member in ("pod1", "pod2"):
            wait_answers(lab, member, "10.96.0.99", {"pod4"}, kinds=[TCP])
            assert answers(lab, member, addresses("pair")[0], kinds=[TCP]) == {"pod3"}
    finally:
        lab.withdraw(OWNER)
        lab.withdraw(OTHER)


def test_a_node_from_nothing_decides_as_one_that_lived_through_it(
    lab: Lab, traffic: Bystanders
) -> None:
    """Bystanders of node2 are none: what it has is removed, and with it its connections."""
    lab.apply(OTHER, aged(service(lab, OTHER, ["pod4"], spec={"externalIPs": [CONTESTED[0]]}), NEW))
    wait_known(lab, OTHER)
    lab.apply(OWNER, aged(service(lab, OWNER, ["pod3"], spec={"externalIPs": [CONTESTED[0]]}), OLD))
    lab.apply("thief", thief(lab, addresses(OWNER), OLD))
    wait_known(lab, OWNER)
    fresh_agent(lab, "node2")
    lab.wait_ready(["node2"])
    wait_until(
        lambda: all(
            frontends(lab, "node1", name) == frontends(lab, "node2", name)
            for name in (OWNER, OTHER, "thief")
        ),
        why=lambda: str(
            [(n, name, frontends(lab, n, name)) for name in (OWNER, OTHER, "thief") for n in NODES]
        ),
    )
    traffic.unharmed()
