"""The kubectl plugin, with a kubectl that only pretends, and with the real one if it is there."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lbctl import kubectl

REAL = Path("/tmp/rc/bin/kubectl")
FAKE = """#!{python}
import json, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(words) + "\\n")
answers = json.load(open({answers!r}))
while words and words[0].startswith("--"):
    words = words[2:]
if words[:2] == ["get", "pods"]:
    print(json.dumps(answers["pods"]))
elif words[:2] == ["get", "pod"]:
    if words[2] not in answers["node_of"]:
        print("Error from server (NotFound)", file=sys.stderr)
        sys.exit(1)
    print(json.dumps({{"spec": {{"nodeName": answers["node_of"][words[2]]}}}}))
elif words[0] == "exec":
    said = answers["said"][words[words.index("--namespace") + 2]]
    print(said["out"], end="")
    print(said.get("err", ""), end="", file=sys.stderr)
    sys.exit(said.get("code", 0))
"""


class Cluster:
    """What the pretended kubectl knows, and what it was asked."""

    def __init__(self, directory: Path) -> None:
        self._log, self._answers = directory / "log", directory / "answers.json"
        self.said: dict[str, dict[str, Any]] = {}
        self.phases = {"agent-1": "Running", "agent-2": "Running"}
        self.node_of = {"client": "node2"}
        self.path = directory / "bin"
        self.path.mkdir()
        fake = self.path / "kubectl"
        fake.write_text(
            FAKE.format(python=sys.executable, log=str(self._log), answers=str(self._answers))
        )
        fake.chmod(0o755)

    def run(self, *words: str) -> int:
        pods = [
            {
                "metadata": {"name": name},
                "spec": {"nodeName": name.replace("agent-", "node")},
                "status": {"phase": phase},
            }
            for name, phase in self.phases.items()
        ]
        answers = {"pods": {"items": pods}, "node_of": self.node_of, "said": self.said}
        self._answers.write_text(json.dumps(answers))
        return kubectl.run(words)

    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def ran(self) -> list[str]:
        """The commands of lbctl, of all pods alike."""
        found = {" ".join(w[w.index("--") + 1 :]) for w in self.asked() if "exec" in w}
        return sorted(found)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path)
    monkeypatch.delenv("KUBECTL", raising=False)
    monkeypatch.setenv("PATH", f"{made.path}:{os.environ['PATH']}")
    return made


Capture = pytest.CaptureFixture[str]


def test_json_is_merged_under_the_names_of_nodes(cluster: Cluster, capsys: Capture) -> None:
    cluster.said = {"agent-1": {"out": '{"ready": true}'}, "agent-2": {"out": '{"ready": false}'}}
    assert cluster.run("status", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "node1": {"ready": True},
        "node2": {"ready": False},
    }


def test_yaml_is_too(cluster: Cluster, capsys: Capture) -> None:
    import yaml

    cluster.said = {"agent-1": {"out": "- a: 1\n- a: 2\n"}, "agent-2": {"out": "[]\n"}}
    assert cluster.run("service", "list", "--output=yaml") == 0
    assert yaml.safe_load(capsys.readouterr().out) == {"node1": [{"a": 1}, {"a": 2}], "node2": []}


def test_tables_get_a_column(cluster: Cluster, capsys: Capture) -> None:
    first = "SERVICE        CONNS  STATE\ndefault/web       12  serving, for now\n"
    second = "SERVICE                CONNS  STATE\nkube-system/kube-dns  123.4K  gone\n"
    cluster.said = {"agent-1": {"out": first}, "agent-2": {"out": second}}
    assert cluster.run("backend", "list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "NODE   SERVICE                CONNS  STATE",
        "node1  default/web               12  serving, for now",
        "node2  kube-system/kube-dns  123.4K  gone",
    ]


def test_empty_cells_and_cells_of_several_lines(cluster: Cluster, capsys: Capture) -> None:
    table = (
        "CHECK  RESULT   FOUND\n"
        "bpffs  MISSING  not mounted\n"
        "                → mount it\n"
        "tcx    ok       yes\n"
    )
    cluster.said = {"agent-1": {"out": table}, "agent-2": {"out": ""}}
    assert cluster.run("doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["NODE", "node1", "node1", "node1"]
    assert lines[2].endswith("→ mount it")


def test_text_comes_under_headings(cluster: Cluster, capsys: Capture) -> None:
    cluster.said = {"agent-1": {"out": "ready  yes\n"}, "agent-2": {"out": "ready  no\n"}}
    assert cluster.run("status") == 0
    assert capsys.readouterr().out == "== node1 ==\nready  yes\n\n== node2 ==\nready  no\n"


def test_the_worst_code_and_every_word_of_warning(cluster: Cluster, capsys: Capture) -> None:
    cluster.said = {
        "agent-1": {"out": "[]", "code": 5, "err": "1 difference\n"},
        "agent-2": {"out": "", "code": 137, "err": "command terminated\n"},
    }
    assert cluster.run("verify", "-o", "json") == 137
    said = capsys.readouterr()
    assert json.loads(said.out) == {"node1": []}
    assert "node1: 1 difference" in said.err
    assert "node2: command terminated" in said.err


def test_one_node_or_that_of_a_pod(cluster: Cluster, capsys: Capture) -> None:
    cluster.said = {"agent-1": {"out": "[1]"}, "agent-2": {"out": "[2]"}}
    assert cluster.run("--node", "node1", "flow", "list", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"node1": [1]}
    assert cluster.run("flow", "list", "-o", "json", "--for", "client", "-n", "apps") == 0
    assert json.loads(capsys.readouterr().out) == {"node2": [2]}
    (get,) = (words for words in cluster.asked() if words[:2] == ["get", "pod"])
    assert get[2:5] == ["client", "--namespace", "apps"]


def test_what_is_not_there_is_named(cluster: Cluster, capsys: Capture) -> None:
    assert cluster.run("--node", "node7", "status") == 1
    assert "no agent runs on node7" in capsys.readouterr().err
    assert cluster.run("--for", "nobody", "status") == 1
    assert "NotFound" in capsys.readouterr().err
    cluster.phases = {"agent-1": "Pending"}
    assert cluster.run("status", "--agent-namespace", "here") == 1
    assert "namespace here" in capsys.readouterr().err


def test_how_kubectl_is_called(cluster: Cluster) -> None:
    cluster.said = {"agent-1": {"out": ""}, "agent-2": {"out": ""}}
    cluster.run("--context", "prod", "--kubeconfig=/k", "status", "-o", "json")
    get, *execs = cluster.asked()
    assert get[:6] == ["--context", "prod", "--kubeconfig", "/k", "get", "pods"]
    assert sorted(execs)[0][4:] == [
        *("exec", "--namespace", "lbctl-system", "agent-1", "--container", "agent"),
        *("--", "lbctl", "status", "-o", "json"),
    ]


@pytest.mark.parametrize(
    ("words", "ran"),
    [
        (["service", "show", "web"], "lbctl service show apps/web"),
        (["service", "show", "other/web"], "lbctl service show other/web"),
        (["explain", "web:http"], "lbctl explain apps/web:http"),
        (["backend", "list"], "lbctl backend list"),
        (["backend", "list", "web"], "lbctl backend list apps/web"),
        (["service", "list"], "lbctl service list --namespace apps"),
        (["flow", "list", "--service", "web"], "lbctl flow list --service apps/web"),
        (["drain", "node2", "--simulate"], "lbctl drain node2 --simulate"),
    ],
)
def test_the_namespace_is_that_of_services(cluster: Cluster, words: list[str], ran: str) -> None:
    cluster.said = {"agent-1": {"out": ""}, "agent-2": {"out": ""}}
    cluster.run(*words, "-n", "apps")
    assert cluster.ran() == [ran]


@pytest.mark.parametrize(
    "words",
    [
        ["flow", "flush"],
        ["cleanup", "--yes"],
        ["agent"],
        ["verify", "--repair"],
        ["drain", "node1"],
        ["nonsense"],
        ["service"],
    ],
)
def test_nothing_is_changed(cluster: Cluster, capsys: Capture, words: list[str]) -> None:
    assert cluster.run(*words) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(FileNotFoundError):
        cluster.asked()


def test_without_kubectl(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("KUBECTL", "/nowhere/kubectl")
    assert kubectl.run(["status"]) == 1
    assert "/nowhere/kubectl" in capsys.readouterr().err


def test_the_file_is_a_plugin_by_itself(tmp_path: Path) -> None:
    """Copied to a machine that has Python, and nothing of ours."""
    source = Path(kubectl.__file__)
    used = {
        (node.module or "").split(".")[0]
        if isinstance(node, ast.ImportFrom)
        else node.names[0].name.split(".")[0]
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert used <= sys.stdlib_module_names
    copy = tmp_path / "kubectl-lbctl"
    copy.write_bytes(source.read_bytes())
    copy.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-I", str(copy), "--help"],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout == kubectl.USAGE
    if not REAL.exists():
        return
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "KUBECTL": str(REAL)}
    done = subprocess.run(
        [str(REAL), "lbctl", "--help"],
        capture_output=True, text=True, timeout=60, check=True, env=environment,
    )  # fmt: skip
    assert done.stdout == kubectl.USAGE
    unreachable = subprocess.run(
        [str(REAL), "lbctl", "status", "--context", "nowhere"],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert unreachable.returncode == 1
    assert "nowhere" in unreachable.stderr
