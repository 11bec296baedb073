"""Session affinity: one client, one backend, by whatever address it calls and whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Endpoint
from lbctl.lab.topology import Pod
from tests.lab.support.external import Exposed
from tests.lab.support.labs import TCP, UDP, Responder, ask, inside, new_socket

pytestmark = pytest.mark.lab

KINDS = {"tcp": TCP, "udp": UDP}
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
SERVICE = Exposed("sticky", 1)
SPEC = {"sessionAffinity": "ClientIP"}
HERE = ("cluster", "node1", "ingress", "external")  # ways that node1 chooses for
CLIENTS = [  # of the outside machine: its own address and more
    (f"172.18.0.{number}", f"fd00:18::{number}") for number in (*range(200, 250), *range(100, 150))
]
FEW = 12  # of them, that call again and again
BACKENDS = ("pod1", "pod2", "pod3", "pod4")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("ea", nodes=2, pods=3)
    batch = [
        f"address add {ipv4}/24 dev eth0\naddress add {ipv6}/64 dev eth0 nodad\n"
        for ipv4, ipv6 in CLIENTS[1:]
    ]
    made.exec("outside", ["ip", "-batch", "-"], stdin="".join(batch), check=True)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        SERVICE.publish(made, BACKENDS, SPEC)
        yield made
    made.down()


@pytest.fixture(autouse=True)
def all_backends(lab: Lab) -> None:
    SERVICE.publish(lab, BACKENDS, SPEC)


def answered_by(
    lab: Lab, family: int, kind: str, way: str = "node1", source: str = "", member: str = "outside"
) -> str:
    """Who answers a new connection."""

    def talk() -> str:
        with new_socket(family, KINDS[kind]) as sock:
            if source:
                sock.bind((source, 0))
            sock.connect(SERVICE.where(lab, way, family))
            return ask(sock, "whom did I get?").server

    return inside(lab, member, talk)


@FAMILY
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_stays_and_clients_spread(lab: Lab, family: int, kind: str) -> None:
    chosen = {}
    for addresses in CLIENTS[:FEW]:
        client = addresses[family]
        answers = {answered_by(lab, family, kind, way, client) for way in (*HERE, *HERE)}
        assert len(answers) == 1, client
        chosen[client] = answers.pop()
    for addresses in CLIENTS[FEW:]:  # of a hundred all avoid one of four once in 10^12 times
        if set(chosen.values()) == set(BACKENDS):
            break
        client = addresses[family]
        chosen[client] = answered_by(lab, family, kind, source=client)
    assert set(chosen.values()) == set(BACKENDS)
    for client, backend in chosen.items():
        assert answered_by(lab, family, kind, "ingress", client) == backend


@FAMILY
def test_a_pod_stays_too(lab: Lab, family: int) -> None:
    answers = {answered_by(lab, family, "tcp", way, member="pod5") for way in (*HERE, *HERE)}
    assert len(answers) == 1


def test_it_outlives_the_agent(lab: Lab) -> None:
    def chosen() -> list[str]:
        return [
            answered_by(lab, family, kind, source=addresses[family])
            for addresses in CLIENTS[:8]
            for family in (0, 1)
            for kind in KINDS
        ]

    before = chosen()
    lab.stop_agent("node1", 9)
    assert chosen() == before
    lab.start_agent("node1")
    lab.wait_ready(["node1"])
    assert chosen() == before


@FAMILY
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["gone", "not-ready", "terminating"])
def test_it_moves_when_its_backend_may_not_be_chosen(
    lab: Lab, how: str, family: int, kind: str
) -> None:
    client = CLIENTS[0][family]
    first = answered_by(lab, family, kind, source=client)
    leave(lab, first, how)
    answers = {answered_by(lab, family, kind, way, client) for way in (*HERE, *HERE)}
    assert len(answers) == 1
    assert first not in answers
    SERVICE.publish(lab, BACKENDS, SPEC)
    assert {answered_by(lab, family, kind, way, client) for way in (*HERE, *HERE)} == answers


def leave(lab: Lab, member: str, how: str) -> None:
    """Take a backend out of the set."""
    pods = [pod for pod in lab.pods if pod.name in BACKENDS]
    endpoints: list[Pod | Endpoint] = [pod for pod in pods if pod.name != member]
    others = [pod for pod in pods if pod.name != member]
    leaving = next(pod for pod in pods if pod.name == member)
    if how == "not-ready":
        endpoints.append(Endpoint(leaving, ready=False, serving=False))
    if how == "terminating":
        endpoints.append(Endpoint(leaving, ready=False, terminating=True))
    lab.apply(SERVICE.name, SERVICE.objects(lab, endpoints, SPEC))
    lab.wait_programmed(f"default/{SERVICE.name}", others)
