"""Services that say how their endpoints are chosen, with real sockets: who answers, and what a
change does to those who talk."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from lbctl.inspect import services
from lbctl.inspect.opened import open_instance
from lbctl.lab.cluster import Lab
from tests.lab.support.labs import (
    PORTS,
    TCP,
    UDP,
    Responder,
    addresses,
    ask,
    connected,
    endpoint,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

MEMBERS = ("pod2", "pod3", "pod4")
ALGORITHMS = ("random", "round-robin", "least-connections", "maglev", "source-hash")
CLIENT = "pod1"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("a", nodes=2, pods=2)
    with Responder() as responder:
        responder.serve(made, MEMBERS)
        yield made
    made.down()


def publish(
    lab: Lab,
    name: str,
    members: Sequence[str] = MEMBERS,
    said: Mapping[str, str] | None = None,
    weights: Mapping[str, str] | None = None,
) -> None:
    """A service with these annotations, of a slice for each member and family; returns when both
    agents have it so."""
    made: list[dict[str, Any]] = []
    for member in members:
        service, *slices = lab.service(name, PORTS, [endpoint(lab, member)])
        service["metadata"]["annotations"] = dict(said or {})
        made += [] if made else [service]
        for part in slices:
            part["metadata"]["name"] += f"-{member}"
            if weights and member in weights:
                part["metadata"]["annotations"] = {"lbctl/weight": weights[member]}
        made += slices
    lab.apply(name, made)
    lab.wait_programmed(f"default/{name}", [endpoint(lab, m) for m in members])
    algorithm = (said or {}).get("lbctl/algorithm", "random")
    wanted = sorted(int((weights or {}).get(member, "100")) for member in members)
    wait_until(lambda: all(shown(lab, n.name, name) == (algorithm, wanted) for n in lab.nodes))


def shown(lab: Lab, node: str, name: str) -> tuple[str, list[int]]:
    """What `service show` says of the first port: the algorithm, and the weights."""
    with open_instance(lab.pin_dir(node)) as instance:
        row = services.show(instance, f"default/{name}")[0]
    return row.algorithm, sorted(backend.weight for backend in row.backends)


def who_answers(lab: Lab, name: str, kind: Any, count: int = 24) -> Counter[str]:
    """Of so many new flows of one client, in turn over both families."""
    found: Counter[str] = Counter()
    for number in range(count):
        with connected(lab, CLIENT, addresses(name)[number % 2], kind) as sock:
            found[ask(sock, f"new {number}").server] += 1
    return found


@pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_everybody_is_served(lab: Lab, algorithm: str, kind: Any) -> None:
    publish(lab, algorithm, said={"lbctl/algorithm": algorithm})
    found = who_answers(lab, algorithm, kind)
    if algorithm == "round-robin":
        assert found == dict.fromkeys(MEMBERS, 8)
    elif algorithm == "source-hash":  # one for each family's address of the client
        assert len(found) <= 2
    else:  # of 24 by chance all go to one of three once in 10^11 times
        assert len(found) > 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_weight_0_gets_nothing_new(lab: Lab, algorithm: str) -> None:
    publish(lab, "weighed", said={"lbctl/algorithm": algorithm}, weights={"pod3": "0"})
    assert "pod3" not in who_answers(lab, "weighed", TCP)


def test_a_change_breaks_no_connection(lab: Lab) -> None:
    """Algorithm, weights and nearness change; every connection goes on with whom it has."""
    publish(lab, "changing")
    with contextlib.ExitStack() as undo:
        talks = [
            undo.enter_context(connected(lab, CLIENT, addresses("changing")[n % 2], TCP))
            for n in range(20)
        ]
        before = [ask(talk, "first") for talk in talks]
        assert len({reply.server for reply in before}) > 1
        for step, algorithm in enumerate((*ALGORITHMS, "random")):
            said = {"lbctl/algorithm": algorithm, "lbctl/near": "node"}
            if algorithm in ("maglev", "source-hash"):
                del said["lbctl/near"]
            publish(lab, "changing", said=said, weights={MEMBERS[step % 3]: "0"})
            now = [ask(talk, f"step {step}") for talk in talks]
            assert [(r.server, r.connection) for r in now] == [
                (r.server, r.connection) for r in before
            ]


def test_near_ones_come_first(lab: Lab) -> None:
    """Of the client's node, as long as it has hardly more to do than the others."""
    near = {m for m in MEMBERS if lab.find(m).node == lab.find(CLIENT).node}  # type: ignore[union-attr]
    assert near
    assert near < set(MEMBERS)
    publish(lab, "near", said={"lbctl/near": "node", "lbctl/spill-over": "1000"})
    assert who_answers(lab, "near", TCP).keys() == near


@pytest.mark.parametrize("leave", ["reset", "1s"])
def test_connections_end_with_their_endpoint_if_that_is_wanted(lab: Lab, leave: str) -> None:
    said = {"lbctl/flows-leave": leave, "lbctl/algorithm": "round-robin"}
    publish(lab, "leaving", said=said)
    with contextlib.ExitStack() as undo:
        address = addresses("leaving")[0]
        talks = [undo.enter_context(connected(lab, CLIENT, address, TCP)) for _ in range(6)]
        servers = [ask(talk, "first").server for talk in talks]
        assert set(servers) == set(MEMBERS)
        publish(lab, "leaving", ["pod2"], said=said)
        for talk, server in zip(talks, servers, strict=True):
            if server != "pod2":
                wait_until(partial(is_reset, talk))
        # All others are by now: who stays is not among those that end.
        for talk, server in zip(talks, servers, strict=True):
            assert server != "pod2" or not is_reset(talk)


def is_reset(talk: socket.socket) -> bool:
    try:
        ask(talk, "still there?")
    except ConnectionResetError:
        return True
    return False
