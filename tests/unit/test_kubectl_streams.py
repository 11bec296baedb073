"""`kubectl lbctl observe`: the streams of several nodes as one, and what all of them lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lbctl.cli import observe
from lbctl.kubectl import streams
from lbctl.observe.stream import Lost
from tests.support.fake_kubectl import Cluster, pretended
from tests.support.waiting import wait_until


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return pretended(tmp_path, monkeypatch)


Capture = pytest.CaptureFixture[str]


def events(node: str, *seconds: int) -> str:
    """As `observe -o json` says them."""
    return "".join(
        f'{{"time":"2026-01-01T00:00:{second:02}.000Z","by":"{node}"}}\n' for second in seconds
    )


def sums(shown: int, lost: int) -> str:
    return f"{shown} events were shown, {lost} lost\n"


def test_streams_are_one(cluster: Cluster, capsys: Capture) -> None:
    cluster.said = {
        "agent-1": {"out": events("node1", 1, 4, 5), "err": sums(3, 2)},
        "agent-2": {"out": events("node2", 2, 3) + '{"lost":7}\n', "err": sums(2, 7)},
    }
    words = ("--node", "node1", "--verdict", "ended", "-o", "json")
    assert cluster.run("observe", *words, "--duration", "1s") == 0
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    assert {"node": "node2", "lost": 7} in found
    assert [(e["time"][17:19], e["node"]) for e in found if "time" in e] == [
        *(("01", "node1"), ("02", "node2"), ("03", "node2"), ("04", "node1"), ("05", "node1")),
    ]
    assert said.err.splitlines() == [
        "node1: 3 events were shown, 2 lost",
        "node2: 2 events were shown, 7 lost",
        "5 events were shown, 9 lost",
    ]
    # Both were asked: behind the command, --node is its filter.
    assert cluster.ran() == [
        "lbctl observe --node node1 --verdict ended -o json --duration 1s --end-with-stdin"
    ]


def test_what_observe_says_in_text_is_counted(
    cluster: Cluster, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin knows a node's losses from its words alone if its stream breaks off."""

    class Losing:
        def events(self) -> list[Lost]:
            return [Lost(2), Lost(5)]

    monkeypatch.setattr("lbctl.cli.objects.say", lambda text: print(f"note: {text}"))
    observe._show(Losing(), "compact")  # type: ignore[arg-type] # what it asks of a Stream
    notes = capsys.readouterr().out
    cluster.said = {
        "agent-1": {"out": "", "err": notes, "code": 1},
        "agent-2": {"out": "", "err": sums(0, 0)},
    }
    assert cluster.run("observe") == 1
    assert "at least 5 lost: not all is known of node1" in capsys.readouterr().err


def test_before_the_command_node_is_whose_stream(cluster: Cluster, capsys: Capture) -> None:
    cluster.said = {"agent-1": {"out": "", "err": sums(0, 0)}}
    assert cluster.run("--node", "node1", "observe", "-n", "apps", "--service", "web") == 0
    assert cluster.ran() == ["lbctl observe --service apps/web --end-with-stdin"]
    assert capsys.readouterr().err == "0 events were shown, 0 lost\n"


def test_a_node_that_goes_is_told_and_what_it_lost_is_not_known(
    cluster: Cluster, capsys: Capture
) -> None:
    cluster.said = {
        "agent-1": {"out": events("node1", 1), "err": "command terminated\n", "code": 137},
        "agent-2": {"out": events("node2", 2), "err": sums(1, 3)},
    }
    assert cluster.run("observe", "-o", "json") == 137
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert "node1: command terminated" in said.err
    assert "node1: gone (exit code 137)" in said.err
    assert said.err.splitlines()[-1] == (
        "2 events were shown, at least 3 lost: not all is known of node1"
    )


def test_the_last_of_all_nodes_are_the_last_of_all(cluster: Cluster, capsys: Capture) -> None:
    cluster.said = {
        "agent-1": {"out": events("node1", 1, 8), "err": sums(2, 0)},
        "agent-2": {"out": events("node2", 7, 9), "err": sums(2, 0)},
    }
    assert cluster.run("observe", "--last", "2", "-o", "json") == 0
    found = [json.loads(line)["time"][17:19] for line in capsys.readouterr().out.splitlines()]
    assert found == ["08", "09"]


def test_lines_and_columns_have_their_node(cluster: Cluster, capsys: Capture) -> None:
    cluster.listed = "Running\t\tapps/client\t10.1.0.9\n"
    head = f"{'TIME':<12} {'CLIENT':<36} REASON\n"
    row = f"{'12:00:01.000':<12} {'10.1.0.9:40000':<36} closed\n"
    cluster.said = {
        "agent-1": {"out": head + row, "err": "note: old\n" + sums(1, 0)},
        "agent-2": {"out": head, "err": sums(0, 0)},
    }
    assert cluster.run("observe", "-o", "table", "--resolve", "--duration", "1s") == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"NODE   {'TIME':<12} {'CLIENT':<36} REASON",
        f"node1  {'12:00:01.000':<12} {'apps/client:40000':<36} closed",
    ]
    assert "node1: note: old" in said.err


def test_midnight_is_no_way_back() -> None:
    following = streams.Following(["a", "b"], ["observe"], None)
    for node, text in (("a", "23:59:59.900 x"), ("b", "00:00:00.100 y"), ("a", "00:00:01.000 z")):
        following.take(streams.Told(node, "out", text), 0.0)
    assert [line[-1] for line in following.lines(float("inf"))] == ["x", "y", "z"]


def test_ctrl_c_ends_all_streams_with_what_they_have_left(cluster: Cluster, tmp_path: Path) -> None:
    """As a person does: to the process that kubectl runs."""
    cluster.said = {
        name: {"out": events(node, 1), "waits": events(node, 2), "err": sums(2, 1)}
        for name, node in (("agent-1", "node1"), ("agent-2", "node2"))
    }
    cluster.answer()
    done = tmp_path / "out"
    with done.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "lbctl.kubectl.run", "observe", "-o", "json"],
            stdout=out, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    try:
        wait_until(lambda: done.read_bytes().count(b"\n") == 2, 30.0)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert done.read_bytes().count(b"\n") == 4
    assert errors.splitlines()[-1] == "4 events were shown, 2 lost"
