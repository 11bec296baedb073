"""loadBalancerSourceRanges: who may use the load balancer's address, and which ways stay open."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.cluster import Lab
from tests.lab.support.external import SHORT, WAYS, Exposed
from tests.lab.support.labs import TCP, UDP, Responder, ask, counted, inside, new_socket
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

KINDS = {"tcp": TCP, "udp": UDP}
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
ALLOWED = ("172.18.0.200", "fd00:18::200")  # the outside machine's own
BLOCKED = ("172.18.0.201", "fd00:18::201")  # its second ones
SPEC = {"loadBalancerSourceRanges": [f" {ALLOWED[0]}/32 ", f"{ALLOWED[1]}/128"]}
GUARDED = {
    policy: Exposed(f"guarded-{policy.lower()}", number, policy)
    for number, policy in enumerate(("Cluster", "Local"), 1)
}
EMPTY = Exposed("guarded-empty", 3)


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("es", nodes=2, pods=1)
    for address in (f"{BLOCKED[0]}/24", f"{BLOCKED[1]}/64"):
        made.exec("outside", ["ip", "address", "add", address, "dev", "eth0"], check=True)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        for service in GUARDED.values():
            service.publish(made, ["pod1"], SPEC)
        EMPTY.publish(made, [], SPEC)
        yield made
    made.down()


def outcome(
    lab: Lab, service: Exposed, way: str, family: int, kind: str, member: str, source: str
) -> str:
    def talk() -> str:
        with new_socket(family, KINDS[kind]) as sock:
            sock.settimeout(SHORT)
            sock.bind((source, 0))
            try:
                sock.connect(service.where(lab, way, family))
                return ask(sock, "may I?").server
            except TimeoutError:
                return "dropped"
            except ConnectionRefusedError:
                return "refused"

    return inside(lab, member, talk)


@FAMILY
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", GUARDED)
def test_only_the_load_balancers_address_is_guarded(
    lab: Lab, policy: str, family: int, kind: str
) -> None:
    ways = [way for way in WAYS if policy == "Cluster" or way != "node2"]
    for source, guarded in ((ALLOWED, "pod1"), (BLOCKED, "dropped")):
        got = {
            way: outcome(lab, GUARDED[policy], way, family, kind, "outside", source[family])
            for way in ways
        }
        assert got == dict.fromkeys(ways, "pod1") | {"ingress": guarded}, source


@FAMILY
@pytest.mark.parametrize("kind", KINDS)
def test_pods_are_guarded_too(lab: Lab, family: int, kind: str) -> None:
    own = lab.find("pod2").addresses[family]
    got = {way: outcome(lab, GUARDED["Local"], way, family, kind, "pod2", own) for way in WAYS}
    assert got == dict.fromkeys(WAYS, "pod1") | {"ingress": "dropped"}


@FAMILY
@pytest.mark.parametrize("kind", KINDS)
def test_a_blocked_client_learns_nothing_where_no_endpoint_is(
    lab: Lab, family: int, kind: str
) -> None:
    before = counted(lab, "node1", "source_range")
    for source, guarded in ((ALLOWED, "refused"), (BLOCKED, "dropped")):
        got = {
            way: outcome(lab, EMPTY, way, family, kind, "outside", source[family]) for way in WAYS
        }
        assert got == dict.fromkeys(WAYS, "refused") | {"ingress": guarded}, source
    assert counted(lab, "node1", "source_range") == before + 1


@FAMILY
def test_ranges_change_while_running(lab: Lab, family: int) -> None:
    """Other ranges, none, and the first ones again, without a moment's opening for others."""
    service = Exposed("changing", 4)
    ranges: list[list[str]] = [
        SPEC["loadBalancerSourceRanges"],
        [f"{BLOCKED[0]}/32", f"{BLOCKED[1]}/128"],
        [],
        SPEC["loadBalancerSourceRanges"],
    ]
    for said in ranges:
        service.publish(lab, ["pod1"], {"loadBalancerSourceRanges": said})
        may = [not said or any(a[family] in r for r in said) for a in (ALLOWED, BLOCKED)]
        wanted = ["pod1" if allowed else "dropped" for allowed in may]
        # A change of ranges shows in no set of endpoints: try until it has been taken in.
        wait_until(lambda: outcomes(lab, service, family) == wanted)  # noqa: B023


def outcomes(lab: Lab, service: Exposed, family: int) -> list[str]:
    """What becomes of who is in the ranges at first, and of who is not."""
    return [
        outcome(lab, service, "ingress", family, "tcp", "outside", source[family])
        for source in (ALLOWED, BLOCKED)
    ]
