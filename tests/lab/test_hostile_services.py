"""Objects that ask for everything, or for what is another's, with traffic running beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lbctl import status
from lbctl.lab import sessions
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port, cluster_ips
from lbctl.lab.state import AgentOptions
from tests.lab.support.labs import endpoint
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

SIZES = AgentOptions(services=512, endpoints=1024, flows=1024)
PORT = 80


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("hostile", nodes=1, pods=3, options=SIZES)
    sessions.start_http(made, [endpoint(made, "pod1"), endpoint(made, "pod2")])
    yield made
    made.down()


def publish(lab: Lab, name: str, member: str = "pod1", **more: Any) -> None:
    found = lab.service(name, [Port(PORT, sessions.HTTP_PORT)], [endpoint(lab, member)], **more)
    lab.apply(name, found)
    lab.wait_programmed(f"default/{name}", [endpoint(lab, member)])


def hostile(lab: Lab, kind: str) -> list[dict[str, Any]]:
    """A service that sorts before all others by name, and asks for more than there is."""
    ports = [Port(1000 + i, sessions.HTTP_PORT, f"p{i}") for i in range(100)]
    more: dict[str, Any] = {}
    if kind == "ports":
        ports = [Port(1000 + i, sessions.HTTP_PORT, f"p{i}") for i in range(5000)]
    if kind == "source ranges":
        ranges = [f"20.{i // 250}.{i % 250}.0/24" for i in range(660)]
        spec = {"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}
        more = {"spec": spec, "ingress": ["192.0.2.99"]}
    found = lab.service("a-hostile", ports, [endpoint(lab, "pod1")], **more)
    if kind == "endpoints":
        for part in found[1:]:
            v6 = part["addressType"] == "IPv6"
            part["endpoints"] = [
                {"addresses": [f"fd00:9::{i:x}" if v6 else f"10.9.{i // 250}.{i % 250}"]}
                for i in range(1, 3000)
            ]
    return found


def warnings(lab: Lab) -> tuple[str, ...]:
    found = status.read(lab.pin_dir("node1"))
    return found.warnings if found else ()


@pytest.mark.parametrize("kind", ["ports", "source ranges", "endpoints"])
def test_who_asks_for_too_much_costs_itself(lab: Lab, kind: str) -> None:
    publish(lab, "web")
    address = cluster_ips("default", "web")[0]
    with sessions.background(lab, "pod3", "http", sessions.target(address, PORT)) as client:
        lab.apply("a-hostile", hostile(lab, kind))
        wait_until(lambda: any("default/a-hostile has no room" in w for w in warnings(lab)), 60)
        publish(lab, "late", "pod2")  # what comes after it is served at once
        publish(lab, "web", "pod2")  # and what is there can change
        lab.stop_agent("node1")
        lab.start_agent("node1")
        lab.wait_ready()
        lab.wait_programmed("default/web", [endpoint(lab, "pod2")])
        lab.wait_programmed("default/late", [endpoint(lab, "pod2")])
        report = client.finish()
    assert report.ok > 0
    assert report.failures == {}
    assert len([w for w in warnings(lab) if "a-hostile" in w]) <= 2
    lab.withdraw("a-hostile")
    lab.withdraw("late")
    wait_until(lambda: not any("a-hostile" in w for w in warnings(lab)), 60)


def test_a_thief_loses_to_the_owner_whenever_it_comes(lab: Lab) -> None:
    address = cluster_ips("default", "web")[0]
    publish(lab, "a-thief", "pod2", spec={"externalIPs": [address]})
    publish(lab, "web", "pod1")

    def servers() -> set[str]:
        target = sessions.target(address, PORT)
        return set(sessions.run_client(lab, "pod3", "http", target, "--requests", "3").servers)

    assert servers() == {"pod1"}
    wait_until(
        lambda: any("default/a-thief" in w and "default/web" in w for w in warnings(lab)), 30
    )
    lab.withdraw("web")
    wait_until(lambda: servers() == {"pod2"}, 30)
    publish(lab, "web", "pod1")
    assert servers() == {"pod1"}
    lab.withdraw("a-thief")
