"""The kubectl plugin, with a kubectl that only pretends, and with the real one if it is there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lbctl.kubectl import asking, release
from lbctl.kubectl import run as kubectl
from tests.support.fake_kubectl import Cluster, pretended

REAL = Path("/tmp/rc/bin/kubectl")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return pretended(tmp_path, monkeypatch)


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


def test_kubectls_remark_is_left_out_where_lbctl_has_spoken(
    cluster: Cluster, capsys: Capture
) -> None:
    remark = "command terminated with exit code"
    cluster.said = {
        "agent-1": {
            "out": "",
            "code": 3,
            "err": f"error: there is no service 'x' here\n{remark} 3\n",
        },
        "agent-2": {"out": "differs", "code": 5, "err": f"{remark} 5\n"},
    }
    assert cluster.run("verify") == 5
    assert capsys.readouterr().err == "node1: error: there is no service 'x' here\n"
    cluster.said = {
        "agent-1": {"out": "", "code": 1, "err": f"{remark} 1\n"},
        "agent-2": {"out": "half of it", "code": 137, "err": f"killed\n{remark} 137\n"},
    }
    assert cluster.run("verify") == 137
    assert capsys.readouterr().err.splitlines() == [
        f"node1: {remark} 1",
        "node2: killed",
        f"node2: {remark} 137",
    ]


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


def test_a_namespace_may_be_in_the_name_of_the_pod(cluster: Cluster) -> None:
    cluster.said = {"agent-1": {"out": ""}, "agent-2": {"out": ""}}
    assert cluster.run("status", "--for", "apps/client") == 0
    (get,) = (words for words in cluster.asked() if words[:2] == ["get", "pod"])
    assert get[2:5] == ["client", "--namespace", "apps"]


@pytest.mark.parametrize(
    ("words", "ran"),
    [
        (["--from", "apps/client"], "--from 10.1.0.9"),
        (["--from=apps/client"], "--from=10.1.0.9"),
    ],
)
def test_explain_from_a_pod_is_asked_where_it_runs(
    cluster: Cluster, words: list[str], ran: str
) -> None:
    cluster.said = {"agent-1": {"out": ""}, "agent-2": {"out": ""}}
    assert cluster.run("explain", "web", *words) == 0
    execs = [words for words in cluster.asked() if words[0] == "exec"]
    assert [words[3] for words in execs] == ["agent-2"]
    assert cluster.ran() == [f"lbctl explain web {ran}"]
    assert cluster.run("explain", "web", *words, "--node", "node1") == 0


@pytest.mark.parametrize("source", ["node", "worker-2", "10.1.0.7", "fd00::1"])
def test_explain_from_anything_else_is_passed_on(cluster: Cluster, source: str) -> None:
    cluster.said = {"agent-1": {"out": ""}, "agent-2": {"out": ""}}
    assert cluster.run("explain", "web", "--from", source) == 0
    assert cluster.ran() == [f"lbctl explain web --from {source}"]


LISTED = (
    "Running\t\tapps/client\t10.1.0.9 fd00::9\n"
    "Running\ttrue\tkube-system/proxy\t192.168.0.1\n"
    "Succeeded\t\tapps/job\t10.1.0.8\n"
)


def test_names_of_pods_in_columns(cluster: Cluster, capsys: Capture) -> None:
    cluster.listed = LISTED
    cluster.said = {
        "agent-1": {"out": "CLIENT          TIME\n10.1.0.9:40000    1s\n10.1.0.8:40000    2s\n"},
        "agent-2": {"out": "CLIENT            TIME\n[fd00::9]:40000    10s\n"},
    }
    assert cluster.run("flow", "list", "--resolve") == 0
    assert capsys.readouterr().out.splitlines() == [
        "NODE   CLIENT             TIME",
        "node1  apps/client:40000    1s",
        "node1  10.1.0.8:40000       2s",
        "node2  apps/client:40000   10s",
    ]


def test_names_of_pods_in_json(cluster: Cluster, capsys: Capture) -> None:
    cluster.listed = LISTED
    side = {"address": "10.1.0.9", "name": ""}
    cluster.said = {"agent-1": {"out": json.dumps([side, side | {"name": "node1"}])}}
    cluster.phases = {"agent-1": "Running"}
    assert cluster.run("flow", "list", "--resolve", "-o", "json") == 0
    (found,) = json.loads(capsys.readouterr().out).values()
    assert [side["name"] for side in found] == ["apps/client", "node1"]


def test_who_may_not_list_pods_is_told(cluster: Cluster, capsys: Capture) -> None:
    assert cluster.run("flow", "list", "--resolve") == 1
    assert "pods cannot be listed: Error from server (Forbidden)" in capsys.readouterr().err
    assert cluster.run("flow", "list", "--resolve", "-o", "yaml") == 2


def test_top_is_one_nodes(cluster: Cluster, capsys: Capture) -> None:
    assert cluster.run("top") == 2
    assert "There are: node1, node2" in capsys.readouterr().err
    assert cluster.run("top", "--node", "node1") == 2
    assert "top needs a terminal" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("status", "-o", "xml"), ("observe", "--nod")])
def test_what_is_wrong_for_all_is_said_once(
    cluster: Cluster, capsys: Capture, command: tuple[str, ...]
) -> None:
    said = {"out": "", "err": "Usage: lbctl\nError: no\n", "code": 2}
    cluster.said = {"agent-1": said, "agent-2": said}
    assert cluster.run(*command) == 2
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "Usage: lbctl\nError: no\n")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["obsrve"], "Did you mean observe?"),
        (["flows", "list"], "Did you mean flow list?"),
        (["exec"], "Those are: backend list, doctor"),
    ],
)
def test_near_names(cluster: Cluster, capsys: Capture, words: list[str], hint: str) -> None:
    assert cluster.run(*words) == 2
    assert hint in capsys.readouterr().err


def test_top_once_is_a_table(cluster: Cluster, capsys: Capture) -> None:
    said = "NAME              ACTIVE  CONNS/S  HISTORY\ndefault/web:http       3      1.0  █\n"
    cluster.said = {"agent-1": {"out": said}, "agent-2": {"out": said}}
    assert cluster.run("top", "--once") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NODE", "NAME", "ACTIVE", "CONNS/S", "HISTORY"]
    assert len(lines) == 3


def test_only_the_standard_library_and_itself() -> None:
    """It runs where Python is, and nothing of ours."""
    for source in Path(asking.__file__).parent.glob("*.py"):
        used = {
            name
            for node in ast.walk(ast.parse(source.read_text()))
            for name in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
        }
        foreign = {name for name in used if name.split(".")[0] not in sys.stdlib_module_names}
        assert all(name.startswith("lbctl.kubectl") for name in foreign), source


def test_one_file_is_a_plugin(tmp_path: Path) -> None:
    plugin, _, _ = release.release(tmp_path, "https://lbctl.example")
    done = subprocess.run(
        [sys.executable, "-I", str(plugin), "--help"],
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
