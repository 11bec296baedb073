"""`lbctl explain --from`: a pod's name, a node's, an address, and what helps where it is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lbctl.cli.main import command as lbctl
from tests.support.apiserver import ApiServer
from tests.support.k8s_objects import endpoint, node, service, slice_of

Json = dict[str, Any]


def pod_of(name: str, where: str, address: str, **spec: Any) -> Json:
    namespace, _, short = name.partition("/")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": short, "namespace": namespace},
        "spec": {"nodeName": where, **spec},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    }


def put_pod(server: ApiServer, pod: Json) -> None:
    metadata = pod["metadata"]
    server.pods[metadata["namespace"], metadata["name"]] = pod


def named(address: str, where: str, name: str) -> Json:
    return endpoint(address, where) | {
        "targetRef": {"kind": "Pod", "namespace": "apps", "name": name}
    }


def other_node() -> Json:
    made = node(name="worker-2")
    made["spec"] = {"podCIDRs": ["10.9.2.0/24"]}
    return made


OBJECTS = [
    service(),
    *slice_of(named("10.0.0.1", "worker-1", "here"), named("10.0.0.2", "worker-2", "there")),
    node(),
    other_node(),
]
ASKED = [
    ("apps/here", "pod", "apps/here runs on worker-1"),
    ("apps/there", "outside", "--node-name worker-2"),
    ("worker-1", "node", ""),
    ("worker-2", "outside", "worker-2 is another node"),
    ("10.0.0.2", "outside", "an endpoint on worker-2"),
    ("10.9.2.77", "outside", "in the range of pods of worker-2"),
    ("198.51.100.7", "outside", "no address of this node nor of a pod"),
]


PODS = {"10.0.0.1:8080": "apps/here", "10.0.0.2:8080": "apps/there"}


def pods_of(found: Json) -> dict[str, str]:
    """Names by endpoint."""
    groups = (group for port in found["ports"] for group in port["groups"])
    return {e["endpoint"]: e["pod"] for group in groups for e in group["endpoints"]}


def explained(source: str, *asked: str) -> Result:
    words = ["explain", "svc1", "--from", source, "--node-name", "worker-1", "-o", "json", *asked]
    return CliRunner().invoke(lbctl, words)


@pytest.fixture
def manifests(tmp_path: Path) -> list[str]:
    path = tmp_path / "objects.json"
    path.write_text(json.dumps({"kind": "List", "items": OBJECTS}))
    return ["--manifests", str(path), "--pin-dir", str(tmp_path)]


@pytest.mark.parametrize(("source", "origin", "note"), ASKED)
def test_of_files(manifests: list[str], source: str, origin: str, note: str) -> None:
    done = explained(source, *manifests)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["origin"] == origin
    assert note in " ".join(found["notes"])
    assert pods_of(found) == PODS


@pytest.mark.parametrize(
    ("source", "code", "hint"),
    [
        ("apps/ther", 3, "Did you mean apps/"),
        ("worker-3", 2, "Did you mean worker-"),
        ("nothing", 2, "A pod is written NAMESPACE/NAME"),
        ("a/b/c", 2, "It is NAMESPACE/NAME"),
        ("apps/", 2, "It is NAMESPACE/NAME"),
    ],
)
def test_what_helps(manifests: list[str], source: str, code: int, hint: str) -> None:
    done = explained(source, *manifests)
    assert (done.exit_code, hint in done.stderr) == (code, True), done.stderr


def test_of_the_api(tmp_path: Path) -> None:
    """A pod that is no endpoint is asked for itself, by the rights of who asks."""
    with ApiServer() as server:
        server.put(*OBJECTS)
        put_pod(server, pod_of("apps/client", "worker-1", "10.9.1.5"))
        put_pod(server, pod_of("apps/far", "worker-2", "10.9.2.5"))
        put_pod(server, pod_of("apps/proxy", "worker-1", "192.168.0.2", hostNetwork=True))
        asked = ["--kubeconfig", str(server.kubeconfig(tmp_path)), "--pin-dir", str(tmp_path)]
        for source, origin, note in (
            *ASKED,
            ("apps/client", "pod", "apps/client runs on worker-1"),
            ("apps/far", "outside", "runs on worker-2"),
            ("apps/proxy", "node", "has the address of worker-1 itself"),
        ):
            done = explained(source, *asked)
            assert done.exit_code == 0, done.stderr
            found = json.loads(done.stdout)
            assert found["origin"] == origin, source
            assert pods_of(found) == PODS
            assert note in " ".join(found["notes"])
        done = explained("apps/nobody", *asked)
        assert (done.exit_code, "there is no pod apps/nobody" in done.stderr) == (3, True)
