"""Each kind of address, by policy, origin, family and protocol: who answers and whom it sees."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.cluster import Lab
from tests.lab.support.external import SHORT, WAYS, Exposed, expected
from tests.lab.support.labs import TCP, UDP, Responder, ask, client, counted

pytestmark = pytest.mark.lab

KINDS = {"tcp": TCP, "udp": UDP}
BACKENDS = {"here": "pod1", "there": "pod2"}  # seen from node1, to which the way from outside leads
ORIGINS = ("outside", "pod1", "pod3", "pod4")
POLICIES = ("Cluster", "Local")
SINGLE = {
    (policy, place): Exposed(f"{policy.lower()}-{place}", number, policy)
    for number, (policy, place) in enumerate(itertools.product(POLICIES, BACKENDS), 1)
}
EMPTY = {
    policy: Exposed(f"{policy.lower()}-empty", 10 + number, policy)
    for number, policy in enumerate(POLICIES)
}
BOTH = {
    policy: Exposed(f"{policy.lower()}-both", 20 + number, policy)
    for number, policy in enumerate(POLICIES)
}


@pytest.fixture(scope="module", params=["route", "bridge"])
def lab(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(request.param[0], cni=request.param, nodes=2, pods=2)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        for (_, place), service in SINGLE.items():
            service.publish(made, [BACKENDS[place]])
        for service in EMPTY.values():
            service.publish(made, [])
        for service in BOTH.values():
            service.publish(made, BACKENDS.values())
        yield made
    made.down()


def outcome(lab: Lab, origin: str, where: tuple[str, int], kind: str) -> tuple[str, str]:
    """Who answered and the client's address it saw, or why nobody did."""
    with client(lab, origin, int(":" in where[0]), KINDS[kind]) as sock:
        sock.settimeout(SHORT)
        try:
            sock.connect(where)
            sock.settimeout(5)
            if kind == "udp":
                sock.settimeout(SHORT)
            replies = [ask(sock, f"{number} " + "x" * 500) for number in range(3)]
        except TimeoutError:
            return "", "timeout"
        except ConnectionRefusedError:
            return "", "refused"
    assert len({(reply.server, reply.client, reply.port) for reply in replies}) == 1
    return replies[0].server, replies[0].client


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_backend_answers_and_sees_whom_it_should(
    lab: Lab, policy: str, origin: str, family: int, kind: str
) -> None:
    got, wanted = {}, {}
    for (place, backend), way in itertools.product(BACKENDS.items(), WAYS):
        service = SINGLE[policy, place]
        got[place, way] = outcome(lab, origin, service.where(lab, way, family), kind)
        seen = expected(lab, policy, origin, way, backend, family).seen
        wanted[place, way] = (backend, seen) if seen else ("", "timeout")
    assert got == wanted


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("origin", ["outside", "pod3"])
@pytest.mark.parametrize("policy", POLICIES)
def test_all_backends_that_may_answer_do(lab: Lab, policy: str, origin: str, family: int) -> None:
    for way in WAYS:
        may = {
            backend
            for backend in BACKENDS.values()
            if expected(lab, policy, origin, way, backend, family).seen
        }
        answered = set()
        for _ in range(60):  # one of two stays out by chance once in 10^17 times
            answered.add(outcome(lab, origin, BOTH[policy].where(lab, way, family), "tcp")[0])
            if answered == may and len(may) == 2:
                break
        assert answered == may, way


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("origin", ["outside", "pod1", "pod4"])
@pytest.mark.parametrize("policy", POLICIES)
def test_without_any_endpoint_it_is_refused_at_once(
    lab: Lab, policy: str, origin: str, family: int, kind: str
) -> None:
    got = {way: outcome(lab, origin, EMPTY[policy].where(lab, way, family), kind) for way in WAYS}
    assert got == dict.fromkeys(WAYS, ("", "refused"))


def test_drops_by_policy_are_counted(lab: Lab) -> None:
    before = counted(lab, "node1", "no_local_endpoint")
    where = SINGLE["Local", "there"].where(lab, "ingress", 0)
    assert outcome(lab, "outside", where, "udp") == ("", "timeout")
    assert counted(lab, "node1", "no_local_endpoint") == before + 1


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_many_connections_at_once_keep_apart(lab: Lab, family: int) -> None:
    """From one client to two nodes and several addresses, all masqueraded or not."""
    service = BOTH["Cluster"]
    with contextlib.ExitStack() as stack:
        socks = []
        for number in range(100):
            where = service.where(lab, WAYS[number % len(WAYS)], family)
            sock = stack.enter_context(client(lab, "outside", family, (TCP, UDP)[number % 2]))
            sock.connect(where)
            socks.append(sock)
        first = [ask(sock, f"first of {number}") for number, sock in enumerate(socks)]
        again = [ask(sock, f"again {number}") for number, sock in enumerate(socks)]
    for before, after in zip(first, again, strict=True):
        assert (before.server, before.client, before.port, before.connection) == (
            after.server,
            after.client,
            after.port,
            after.connection,
        )
