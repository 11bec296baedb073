"""Health checks of an agent in a lab, asked from outside as a load balancer would."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ebpf.instance import Instance
from lbctl import status
from lbctl.datapath import clock
from lbctl.lab import objects
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Endpoint, Port
from lbctl.lab.state import AgentOptions
from lbctl.lab.topology import Pod
from tests.lab.support.labs import inside

pytestmark = pytest.mark.lab

CHECK = 32123
CONFIG = """
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
healthzBindAddress: "[::]:10256"
"""
BOUND = 20.0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("health") / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def checked(make_lab: Callable[..., Lab], config: Path) -> Lab:
    """Two nodes with two pods each: pod1 and pod3 on node1, pod2 and pod4 on node2."""
    options = AgentOptions(extra=("--config", str(config)))
    return make_lab("lab", nodes=2, pods=2, options=options)


def ask(lab: Lab, address: str, port: int, path: str = "/") -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body of an answer, as the outside client gets it."""

    def connect() -> socket.socket:
        return socket.create_connection((address, port), timeout=5)

    client = http.client.HTTPConnection(address, port)
    client.sock = inside(lab, "outside", connect)
    try:
        client.request("GET", path)
        answer = client.getresponse()
        return answer.status, dict(answer.getheaders()), json.loads(answer.read())
    finally:
        client.close()


def eventually(what: Callable[[], object]) -> None:
    end = time.monotonic() + BOUND
    while True:
        try:
            if what():
                return
        except ConnectionError:  # not yet, or in the queue of a socket that was closed
            pass
        assert time.monotonic() < end
        time.sleep(0.05)


def publish(lab: Lab, *endpoints: Pod | Endpoint, **spec: object) -> None:
    """A load balancer with external policy Local."""
    given = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": CHECK,
        **spec,
    }
    ports = [Port(80, 8080, "http"), Port(443, 8443, "https")]
    lab.apply("balanced", lab.service("balanced", ports, endpoints, spec=given))


def count(lab: Lab, node: str, family: int = 0) -> tuple[int, int]:
    """Status and number of local endpoints that a node reports."""
    code, headers, body = ask(lab, lab.node(node).addresses[family], CHECK)
    assert headers["X-Load-Balancing-Endpoint-Weight"] == str(body["localEndpoints"])
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert body["service"] == {"namespace": "default", "name": "balanced"}
    assert body["serviceProxyHealthy"] is True
    return code, body["localEndpoints"]


def pods(lab: Lab, *names: str) -> list[Pod]:
    return [pod for pod in lab.pods if pod.name in names]


def test_a_node_is_healthy(checked: Lab) -> None:
    for node in checked.nodes:
        for address in node.addresses:
            code, headers, body = ask(checked, address, 10256, "/healthz")
            assert (code, body["nodeEligible"]) == (200, True)
            assert headers["Content-Type"] == "application/json"
            assert body.keys() == {"lastUpdated", "currentTime", "nodeEligible"}
            assert ask(checked, address, 10256, "/livez")[0] == 200


def test_local_endpoints_are_counted_until_the_last_one_leaves(checked: Lab) -> None:
    publish(checked, *pods(checked, "pod1", "pod2", "pod3"))
    eventually(lambda: count(checked, "node1") == (200, 2))
    eventually(lambda: [count(checked, "node2", f) for f in (0, 1)] == [(200, 1)] * 2)
    leaving = [
        Endpoint(pod, ready=False, terminating=True) for pod in pods(checked, "pod1", "pod3")
    ]
    publish(checked, *leaving, *pods(checked, "pod2"))
    eventually(lambda: count(checked, "node1") == (503, 0))  # they serve still, but do not count
    publish(checked, *pods(checked, "pod2"))
    eventually(lambda: count(checked, "node2") == (200, 1))
    assert count(checked, "node1") == (503, 0)


def test_the_port_moves_and_goes_with_its_service(checked: Lab) -> None:
    publish(checked, *pods(checked, "pod1"))
    address = checked.node("node1").ipv4
    eventually(lambda: count(checked, "node1") == (200, 1))
    publish(checked, *pods(checked, "pod1"), healthCheckNodePort=CHECK + 1)
    eventually(lambda: ask(checked, address, CHECK + 1)[0] == 200)
    eventually(lambda: refused(checked, address, CHECK))
    publish(checked, *pods(checked, "pod1"), externalTrafficPolicy="Cluster")
    eventually(lambda: refused(checked, address, CHECK + 1))
    checked.withdraw("balanced")


def refused(lab: Lab, address: str, port: int) -> bool:
    try:
        ask(lab, address, port)
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # in the queue of a socket that was closed
        return False
    return False


def test_a_node_that_is_to_go_is_not_eligible(checked: Lab) -> None:
    node = checked.node("node1")
    described = objects.nodes(checked.state.topology)
    tainted = [dict(value) for value in described]
    tainted[0]["spec"] = {
        **described[0]["spec"],
        "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}],
    }
    checked.apply("nodes", tainted)
    eventually(lambda: ask(checked, node.ipv4, 10256, "/healthz")[0] == 503)
    assert ask(checked, node.ipv4, 10256, "/healthz")[2]["nodeEligible"] is False
    assert ask(checked, node.ipv4, 10256, "/livez")[0] == 200
    assert ask(checked, checked.node("node2").ipv4, 10256, "/healthz")[0] == 200
    checked.apply("nodes", described)
    eventually(lambda: ask(checked, node.ipv4, 10256, "/healthz")[0] == 200)


def test_a_port_in_use_is_said_and_taken_later(checked: Lab) -> None:
    address = checked.node("node1").ipv4

    def hold() -> socket.socket:
        return socket.create_server(("0.0.0.0", CHECK))

    def warned() -> bool:
        said = status.read(checked.pin_dir("node1"))
        assert said is not None
        return any(f"0.0.0.0:{CHECK}" in warning for warning in said.warnings)

    with inside(checked, "node1", hold):
        publish(checked, *pods(checked, "pod1"))
        eventually(warned)
        eventually(lambda: count(checked, "node1", 1) == (200, 1))  # the other family has it
    eventually(lambda: not refused(checked, address, CHECK) and count(checked, "node1")[0] == 200)
    eventually(lambda: not warned())
    checked.withdraw("balanced")


def test_a_changed_file_is_taken_over(checked: Lab, config: Path) -> None:
    """A timeout, service ranges and the place of /healthz, in a process that goes on."""
    before = checked.agent("node1")
    fresh = config.with_suffix(".new")
    fresh.write_text(
        CONFIG.replace("10256", "10300")
        + "conntrack: {udpTimeout: 77s}\nhostnameOverride: other\nclusterCIDR: 10.99.0.0/16\n"
    )
    fresh.replace(config)
    address = checked.node("node1").ipv4
    eventually(lambda: ask(checked, address, 10300, "/healthz")[0] == 200)
    eventually(lambda: refused(checked, address, 10256))

    def timeout() -> int:
        with Instance.open(checked.pin_dir("node1")) as opened:
            return int(opened.config.records["datagram_timeout"][0])

    eventually(lambda: timeout() == clock.beats(77))

    def warned() -> bool:
        said = status.read(checked.pin_dir("node1"))
        assert said is not None
        # The name and the pods' range are those of the command line.
        return any("restart" in warning for warning in said.warnings)

    assert not warned()
    ours = "apiVersion: lbctl/v1alpha1\nkind: AgentConfiguration\n"
    fresh.write_text(f"{CONFIG}---\n{ours}takeover: on\n")
    fresh.replace(config)
    eventually(warned)
    eventually(lambda: timeout() == clock.beats(30))
    assert ask(checked, address, 10256, "/healthz")[0] == 200
    after = checked.agent("node1")
    assert after == before
    assert after is not None
    assert after.running
