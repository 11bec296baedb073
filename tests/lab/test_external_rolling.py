"""Every endpoint of a service is replaced while new connections keep coming; none of them fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest

from lbctl.lab import sessions
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Endpoint
from lbctl.lab.topology import Pod
from lbctl.lab.traffic.report import Report
from tests.lab.support.external import Exposed

pytestmark = pytest.mark.lab

REPLACED = ("pod1", "pod2")
CLIENTS = ("pod3", "pod4")  # on node1 and node2
RATE = "40"  # per second and client
HTTP = Exposed("rolling", 1)
LOCAL = Exposed("rolling-local", 2, "Local")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("er", nodes=2, pods=2)
    sessions.start_http(made, [pod for pod in made.pods if pod.name in REPLACED])
    yield made
    made.down()


def publish(lab: Lab, endpoints: Sequence[Pod | Endpoint], service: Exposed = HTTP) -> None:
    """Make the service lead to those that may carry new connections, by the rules."""
    lab.apply(service.name, service.objects(lab, endpoints, target=sessions.HTTP_PORT))
    found = [e if isinstance(e, Endpoint) else Endpoint(e) for e in endpoints]
    usable = [e.pod for e in found if e.ready] or [
        e.pod for e in found if e.serving and e.terminating
    ]
    lab.wait_programmed(f"default/{service.name}", usable)


def leaving(pod: Pod, *, serving: bool = True) -> Endpoint:
    return Endpoint(pod, ready=False, serving=serving, terminating=True)


@contextlib.contextmanager
def traffic(lab: Lab, service: Exposed, ways: Sequence[tuple[str, str]]) -> Iterator[list[Report]]:
    """Steady new connections by these (client, way), in both families; reports at the end."""
    reports: list[Report] = []
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(
                sessions.background(
                    lab,
                    member,
                    "http",
                    sessions.target(*service.where(lab, way, family)),
                    "--rate",
                    RATE,
                )
            )
            for member, way in ways
            for family in (0, 1)
        ]
        yield reports
        reports += [client.finish() for client in clients]


def assert_all_answered(reports: Sequence[Report]) -> None:
    assert [(r.target, r.failures, r.slow, r.notes) for r in reports] == [
        (r.target, {}, 0, []) for r in reports
    ]
    assert all(report.ok > 20 for report in reports)


def test_no_connection_fails_while_all_endpoints_are_replaced(lab: Lab) -> None:
    """One after the other, as a rolling update does: the new one is ready, the old one
    terminates, is no longer listed, and only then is its pod gone."""
    current = [pod for pod in lab.pods if pod.name in REPLACED]
    publish(lab, current)
    ways = [("outside", "node1"), ("outside", "node2"), ("outside", "ingress")]
    ways += [("outside", "cluster"), *((pod, "cluster") for pod in CLIENTS), ("pod4", "node1")]
    with traffic(lab, HTTP, ways) as reports:
        for old in list(current):
            fresh = lab.add_pod(old.node)
            sessions.start_http(lab, [fresh])
            publish(lab, [*current, Endpoint(fresh, ready=False, serving=False)])
            publish(lab, [*current, fresh])
            others = [pod for pod in current if pod != old]
            publish(lab, [*others, fresh, leaving(old)])
            publish(lab, [*others, fresh])
            current = [*others, fresh]
            lab.exec(old.name, ["sleep", "0.5"])  # what was begun is finished
            lab.remove_pod(old.name)
    assert_all_answered(reports)
    names = {pod.name for pod in current}
    for report in reports:
        assert names <= set(report.servers) <= names | set(REPLACED)


def test_terminating_endpoints_carry_on_while_there_are_no_others(lab: Lab) -> None:
    """Policy Local, as a node sees a deployment move away from it: its last endpoint serves until
    it is gone. Then, and only then, connections from outside fail here."""
    pods = [pod for pod in lab.pods if pod.name not in CLIENTS]
    here, there = sorted(pods, key=lambda pod: pod.node)
    publish(lab, [here, there], LOCAL)
    ways = [("outside", "node1"), ("outside", "node2"), ("outside", "external")]
    with traffic(lab, LOCAL, ways) as reports:
        lab.apply(
            LOCAL.name,
            LOCAL.objects(lab, [leaving(here), there], target=sessions.HTTP_PORT),
        )
        lab.wait_programmed(f"default/{LOCAL.name}", [here, there], ["node1"])
        publish(lab, [leaving(here), leaving(there)], LOCAL)
        lab.exec("outside", ["sleep", "1"])
    assert_all_answered(reports)
    by_target = {report.target: set(report.servers) for report in reports}
    for family in (0, 1):
        for way, pod in (("node1", here), ("external", here), ("node2", there)):
            where = sessions.target(*LOCAL.where(lab, way, family))
            assert by_target[where] == {pod.name}
    publish(lab, [leaving(here, serving=False), leaving(there, serving=False)], LOCAL)
    for family in (0, 1):
        where = sessions.target(*LOCAL.where(lab, "node1", family))
        report = sessions.run_client(lab, "outside", "http", where, "--requests", "3")
        assert report.failures == {"refused": 3}
