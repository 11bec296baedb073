"""Addresses nobody may take by an object: those every machine has, the nodes', and the pods'."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.cluster import Lab
from lbctl.lab.objects import JsonObject, Port
from lbctl.lab.state import AgentOptions
from tests.lab.support.bystanders import STEADY, Bystanders, bystanders, targets
from tests.lab.support.faults import (
    answers,
    answers_process,
    frontends,
    service,
    wait_frontends,
    wait_said,
)
from tests.lab.support.labs import PORT, TARGET, TCP, UDP, Responder, addresses, endpoint
from tests.lab.support.remote_sockets import process_in

pytestmark = pytest.mark.lab

NODES = ("node1", "node2")
SERVERS = ("pod2", "pod3")
OWN = 2222  # a server of each node's own processes, at all its addresses
LOOPBACK = {"127.0.0.1", "127.8.8.8", "::1"}
FORBIDDEN = {
    "loopback": ("127.0.0.1", "::1"),
    "loopback-other": ("127.8.8.8", "::ffff:127.0.0.1"),
    "unspecified": ("0.0.0.0", "::"),
    "link-local": ("169.254.1.1", "fe80::1"),  # what pods have as their gateway
    "link-local-metadata": ("169.254.169.254", "fe80::a9fe:a9fe"),
    "multicast": ("224.0.0.251", "ff02::fb"),
    "broadcast": ("255.255.255.255", "ff02::1"),
}
ALLOWED = ("192.0.2.60", "2001:db8:2::60")
WAYS = ("external", "ingress")


@pytest.fixture(scope="module")
def responder() -> Iterator[Responder]:
    with Responder() as made:
        yield made


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab], responder: Responder) -> Iterator[Lab]:
    made = make_lab("fa", nodes=2, pods=2)
    responder.serve(made, [pod.name for pod in made.pods])
    responder.serve(made, NODES, OWN)
    for node in NODES:
        for address in sorted(LOOPBACK):
            for kind in (TCP, UDP):
                responder.listen_at(made, node, address, OWN, kind, f"{node}-itself")
    STEADY.publish(made, SERVERS)
    yield made
    made.down()


@pytest.fixture(scope="module")
def traffic(lab: Lab) -> Iterator[Bystanders]:
    with bystanders(lab, targets(lab, SERVERS)) as made:
        yield made


@pytest.fixture(autouse=True)
def nobody_else_is_harmed(lab: Lab, traffic: Bystanders) -> Iterator[None]:
    yield
    lab.withdraw("thief")
    lab.wait_gone("default/thief")
    traffic.unharmed()


def thief(lab: Lab, wanted: tuple[str, ...], way: str, port: int = PORT) -> list[JsonObject]:
    """A service of pod4 that asks for these addresses and for one that it may have."""
    ports = [Port(port, TARGET, "tcp"), Port(port, TARGET, "udp", "UDP")]
    asked = (*wanted, *ALLOWED)
    if way == "external":
        return service(lab, "thief", ["pod4"], ports, {"externalIPs": list(asked)})
    return service(lab, "thief", ["pod4"], ports, {"type": "LoadBalancer"}, ingress=asked)


def wait_served(lab: Lab, port: int) -> None:
    """Until both nodes serve the address that is allowed, hence have judged the others."""
    for node in NODES:
        wait_frontends(lab, node, "thief", {(address, port) for address in ALLOWED})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", FORBIDDEN)
def test_an_address_that_every_machine_has_is_not_served(lab: Lab, what: str, way: str) -> None:
    """The rest of the object is, and the status says what is left out."""
    lab.apply("thief", thief(lab, FORBIDDEN[what], way))
    wait_served(lab, PORT)
    for node in NODES:
        own = set(addresses("thief"))
        assert {address for address, _ in frontends(lab, node, "thief")} == own | set(ALLOWED)
        assert wait_said(lab, node, "default/thief", FORBIDDEN[what][0])


@pytest.mark.parametrize("way", WAYS)
def test_what_listens_on_loopback_stays_reachable(lab: Lab, way: str) -> None:
    taken = ("127.0.0.1", "127.8.8.8", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1")
    lab.apply("thief", thief(lab, taken, way, OWN))
    wait_served(lab, OWN)
    for node in NODES:
        with process_in(lab, node) as process:
            for address in ("127.0.0.1", "127.8.8.8", "::1"):
                assert answers_process(process, address, OWN) == {f"{node}-itself"}
            assert answers_process(process, "::ffff:127.0.0.1", OWN, family=1) == {f"{node}-itself"}


@pytest.mark.parametrize("way", WAYS)
def test_a_pods_address_stays_its_own(lab: Lab, way: str) -> None:
    lab.apply("thief", thief(lab, lab.find("pod2").addresses, way, TARGET))
    wait_served(lab, TARGET)
    for family in (0, 1):
        address = lab.find("pod2").addresses[family]
        for member in ("pod1", "pod4"):
            assert answers(lab, member, address, TARGET) == {"pod2"}
        with process_in(lab, "node1") as process:
            assert answers_process(process, address, TARGET) == {"pod2"}


@pytest.mark.parametrize("place", ["127.0.0.1", "127.8.8.8", "0.0.0.0", "169.254.1.1", "224.0.0.1"])
def test_an_endpoint_at_such_an_address_is_not_used(lab: Lab, place: str) -> None:
    """A service would else be a way to what listens on a node's loopback."""
    sixth = {"0.0.0.0": "::", "169.254.1.1": "fe80::1", "224.0.0.1": "ff02::1"}.get(place, "::1")
    found, *slices = service(lab, "thief", ["pod4"])
    for each, bad in zip(slices, (place, sixth), strict=True):
        here = {"addresses": [bad], "conditions": {"ready": True}, "nodeName": "node1"}
        each["endpoints"] = [here, *each["endpoints"]]
    lab.apply("thief", [found, *slices])
    lab.wait_programmed("default/thief", [endpoint(lab, "pod4")], timeout=10)
    for address in addresses("thief"):
        assert answers(lab, "pod1", address, times=8) == {"pod4"}
        with process_in(lab, "node1") as process:
            assert answers_process(process, address, PORT, times=8) == {"pod4"}
    for node in NODES:
        wait_said(lab, node, "default/thief", place)


@pytest.mark.parametrize("way", ["cluster", *WAYS])
def test_a_cluster_ip_in_another_writing_is_no_new_address(lab: Lab, way: str) -> None:
    """::ffff:10.96.0.1 is what sockets of IPv6 call 10.96.0.1."""
    mapped = f"::ffff:{addresses('steady')[0]}"
    if way == "cluster":
        made = service(lab, "thief", ["pod4"], addresses=(addresses("thief")[0], mapped))
        lab.apply("thief", made)
        own = (addresses("thief")[0], PORT)
        for node in NODES:
            wait_frontends(lab, node, "thief", {own})
    else:
        lab.apply("thief", thief(lab, (mapped,), way))
        wait_served(lab, PORT)
    with process_in(lab, "node1") as process:
        assert answers_process(process, mapped, PORT, family=1) <= set(SERVERS)
        assert answers_process(process, addresses("steady")[0], PORT) <= set(SERVERS)


def test_with_configured_ranges_external_ips_are_served_inside_them_alone(
    make_lab: Callable[..., Lab], responder: Responder
) -> None:
    options = AgentOptions(
        extra=("--external-ip-cidr", "192.0.2.0/25", "--external-ip-cidr", "2001:db8:2::/112")
    )
    made = make_lab("fr", nodes=1, pods=2, options=options)
    responder.serve(made, ["pod1", "pod2"])
    inside, beyond = ("192.0.2.9", "2001:db8:2::9"), ("192.0.2.200", "2001:db8:2::1:9")
    spec = {"externalIPs": [*inside, *beyond]}
    made.apply("fenced", service(made, "fenced", ["pod2"], spec=spec))
    made.wait_programmed("default/fenced", [endpoint(made, "pod2")])
    served = {address for address, _ in frontends(made, "node1", "fenced")}
    assert served == {*addresses("fenced"), *inside}
    for family in (0, 1):
        assert answers(made, "outside", inside[family]) == {"pod2"}
        assert answers(made, "outside", beyond[family], times=1) == {"nobody"}
    wait_said(made, "node1", "default/fenced", beyond[0])
