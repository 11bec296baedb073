"""`lbctl bundle` of a node with an agent: what is in it, and that planted secrets are not."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import cluster_ips
from lbctl.lab.state import AgentOptions
from tests.lab.support.faults import service
from tests.lab.support.labs import endpoint

pytestmark = pytest.mark.lab

SECRET = "planted-9f86d081884c7d65"
CONFIG = f"""\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection:
  kubeconfig: /nowhere
  # token: {SECRET}-config
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    config.write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANTED", f"{SECRET}-environment")
        patch.setenv("SOME_TOKEN", f"{SECRET}-environment")
        options = AgentOptions(extra=("--config", str(config)))
        made = make_lab("bd", nodes=1, pods=2, options=options)
    made.apply("web", service(made, "web", ["pod1", "pod2"]))
    yield made
    made.down()


def members(archive: Path) -> dict[str, str]:
    with tarfile.open(archive) as opened:
        found = {}
        for item in opened.getmembers():
            file = opened.extractfile(item)
            assert file
            found[item.name.partition("/")[2]] = file.read().decode()
        return found


def test_what_is_in_it_and_what_is_not(lab: Lab, tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    lines = [f"Authorization: Bearer {SECRET}-log", "programs attached"]
    log.write_text("\n".join([*lines, lab.paths.log("node1").read_text()]))
    archive = tmp_path / "bundle.tar.gz"
    lab.wait_programmed("default/web", [endpoint(lab, pod.name) for pod in lab.pods])
    command = lbctl_command(
        *("bundle", str(archive), "--log", str(log), "--pin-dir", str(lab.pin_dir("node1")))
    )
    done = lab.exec("node1", command, check=True)
    assert done.stdout.strip() == str(archive)
    assert archive.stat().st_mode & 0o777 == 0o600
    found = members(archive)
    assert found["missing.txt"] == "\n", found["missing.txt"]
    status = json.loads(found["status.json"])
    assert (status["node"], status["ready"]) == ("node1", True)
    assert {row["name"]["service"] for row in json.loads(found["services.json"])} == {"web"}
    texts = [e["value"]["text"] for e in json.loads(found["maps/names.json"])["entries"]]
    assert any(text.startswith("default/web:") for text in texts)
    entries = json.loads(found["maps/frontends.json"])["entries"]
    frontends = {e["key"]["addr"] for e in entries if "service" in e["value"]}
    endpoints = {e["key"]["addr"] for e in entries if "backends" in e["value"]}
    assert {*cluster_ips("default", "web")} <= frontends
    assert lab.pods[0].ipv4 in endpoints - frontends
    (table,) = json.loads(found["maps/table4a.json"])["entries"]
    assert table["value"]["buckets"]
    assert "secret" not in table["value"]
    assert {row["endpoint"] for row in json.loads(found["backends.json"])} & {
        f"{pod.ipv4}:7000" for pod in lab.pods
    }
    assert "KubeProxyConfiguration" in found["config.yaml"]
    assert "programs attached" in found["logs/0-agent.log"]
    assert json.loads(found["versions.json"])["packages"]["lbctl"]
    assert any(c["name"] for c in json.loads(found["doctor.json"]))
    secret = [name for name, text in found.items() if SECRET in text]
    assert secret == []


def test_without_flows_there_are_no_clients(lab: Lab, tmp_path: Path) -> None:
    archive = tmp_path / "bundle.tar.gz"
    pin_dir = str(lab.pin_dir("node1"))
    lab.exec(
        "node1",
        lbctl_command("bundle", str(archive), "--no-flows", "--pin-dir", pin_dir),
        check=True,
    )
    found = members(archive)
    assert "flows.json" not in found
    of_clients = ("flow", "affinity", "cells", "states", "held", "stash", "fragment", "socket")
    assert not [name for name in found if name.partition("/")[2].startswith(of_clients)]
    assert "maps/frontends.json" in found
