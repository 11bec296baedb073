"""Smaller parts of the agent: its record in the data path, its status file, its surroundings."""

import fcntl
import os
from pathlib import Path

import pytest

from lbctl import status
from lbctl.addresses import parse_address, parse_prefix
from lbctl.datapath import consts
from lbctl.errors import ConfigError
from lbctl.host import reserve, takeover
from lbctl.program import config as nodeconfig
from lbctl.program.config import DataPathSettings
from lbctl.resolve.node import NodeFacts
from lbctl.status import StatusRecord, TableUse
from tests.support.fake_tables import FakeTables

FACTS = NodeFacts(
    "node1",
    primary4=parse_address("172.18.0.11"),
    primary6=parse_address("fd00:18::11"),
    service_cidrs=(parse_prefix("10.96.0.0/16"), parse_prefix("fd00:96::/112")),
)


def test_the_config_record_says_what_the_programs_need() -> None:
    table = FakeTables().config
    nodeconfig.store(table, FACTS, DataPathSettings(True, 1000))
    record = table.records[0]
    assert record["flags"] == consts.CONFIG_PASS_MIDSTREAM
    assert record["flow_limit"] == 750
    # 60 s are 55.9 ticks of 2^30 ns: never less than what was meant.
    assert record["syn_timeout"] == 56
    assert (record["port_min"], record["port_max"]) == (61000, 65535)
    assert record["node4"].tobytes() == parse_address("172.18.0.11")
    assert (record["cidr_count4"], record["cidr_count6"]) == (1, 1)
    assert record["cidr4"][0]["net"].tobytes()[12:] == bytes([10, 96, 0, 0])
    assert record["cidr4"][0]["mask"].tobytes()[12:] == bytes([255, 255, 0, 0])
    assert record["cidr6"][0]["mask"].tobytes() == b"\xff" * 14 + b"\0\0"


def test_an_equal_config_is_not_written() -> None:
    table = FakeTables().config
    nodeconfig.store(table, FACTS, DataPathSettings(False, 1000))
    table.records.flags.writeable = False
    assert nodeconfig.store(table, FACTS, DataPathSettings(False, 1000)) == []


def test_only_what_differs_is_written() -> None:
    table = FakeTables().config
    nodeconfig.store(table, FACTS, DataPathSettings(False, 1000))
    assert nodeconfig.store(table, FACTS, DataPathSettings(True, 1000)) == ["flags"]
    fewer = NodeFacts("node1", primary4=FACTS.primary4, primary6=FACTS.primary6)
    nodeconfig.store(table, fewer, DataPathSettings(True, 1000))
    assert (table.records["cidr_count4"][0], table.records["cidr_count6"][0]) == (0, 0)


def test_too_many_ranges_are_an_error_that_says_how_many_fit() -> None:
    cidrs = tuple(parse_prefix(f"10.{i}.0.0/16") for i in range(consts.MAX_SERVICE_CIDRS + 1))
    with pytest.raises(ConfigError, match="--service-cidr") as caught:
        nodeconfig.store(
            FakeTables().config,
            NodeFacts("n", service_cidrs=cidrs),
            DataPathSettings(False, 1),
        )
    assert str(consts.MAX_SERVICE_CIDRS) in caught.value.hint


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, 0), (1, 1), (1.0737, 1), (1.1, 2), (60, 56), (10800, 10059)]
)
def test_ticks_cover_the_seconds(seconds: float, expected: int) -> None:
    assert consts.ticks(seconds) == expected
    assert expected * 2**30 >= seconds * 1e9 - 1e5


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(status, "RUN_DIR", tmp_path / "run")
    return tmp_path


def test_the_status_file_is_per_instance(run_dir: Path) -> None:
    one, other = run_dir / "a", run_dir / "b"
    assert status.read(one) is None
    record = StatusRecord(
        7, "1", "node1", str(one), ready=True, services=3, tables={"slots": TableUse(1, 2, "-f")}
    )
    status.write(record)
    assert status.read(one) == record
    assert status.read(other) is None
    assert [p.suffix for p in (run_dir / "run").iterdir()] == [".json"]
    status.remove(one)
    status.remove(one)
    assert status.read(one) is None


def test_an_unreadable_status_is_none(run_dir: Path) -> None:
    path = status.path_of(run_dir)
    path.parent.mkdir()
    path.write_text('{"pid": "x"}')
    assert status.read(run_dir) is None


def test_hints_are_those_of_the_agent_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "RUN_DIR", tmp_path / "run")
    monkeypatch.setattr(status, "running_agent", lambda _: 17)
    assert status.read_hints(tmp_path) is None
    status.write_hints(tmp_path, status.HintsRecord(17, {"a/b/TCP/v4": "not used: so"}))
    assert status.read_hints(tmp_path) == {"a/b/TCP/v4": "not used: so"}
    monkeypatch.setattr(status, "running_agent", lambda _: 18)
    assert status.read_hints(tmp_path) is None
    status.write(StatusRecord(17, "1", "n", str(tmp_path)))
    status.remove(tmp_path)
    assert list((tmp_path / "run").iterdir()) == []


def test_the_agent_is_known_by_its_lock(tmp_path: Path) -> None:
    assert status.running_agent(tmp_path / "none") == 0
    assert status.running_agent(tmp_path) == 0
    held = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert status.running_agent(tmp_path) == os.getpid()
    finally:
        os.close(held)
    assert status.running_agent(tmp_path) == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "61000-61999"),
        ("8080,9000-9100", "8080,9000-9100,61000-61999"),
        ("61000-61998", "61000-61998,61000-61999"),
    ],
)
def test_ports_are_reserved_beside_those_that_are(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "reserved"
    path.write_text(before + "\n")
    assert reserve.reserve(61000, 61999, path)
    assert path.read_text() == after
    assert not reserve.reserve(61000, 61999, path)


@pytest.mark.parametrize("before", ["61000-61999", "1,60000-61500,61501-62000"])
def test_reserved_ports_are_not_written_again(tmp_path: Path, before: str) -> None:
    path = tmp_path / "reserved"
    path.write_text(before)
    assert not reserve.reserve(61000, 61999, path)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("outputs", "legacy", "expected"),
    [
        ({}, False, False),
        ({"nft": "table ip nat {\n\tchain KUBE-SERVICES {\n\t}\n}\n"}, False, True),
        ({"nft": "table ip kube-proxy {\n\tchain services {\n\t}\n}\n"}, False, True),
        ({"nft": "table ip nat {\n\tchain PREROUTING {\n\t}\n}\n"}, False, False),
        ({"nft": "table ip nat {\n\tchain KUBE-KUBELET-CANARY {\n\t}\n}\n"}, False, False),
        ({"nft": "table ip nat {\n\tchain KUBE-SVC-ABCDEFGH {\n\t}\n}\n"}, False, True),
        ({"iptables-nft-save": ":KUBE-SERVICES - [0:0]"}, False, True),
        ({"nft": "", "iptables-legacy-save": ":KUBE-SERVICES - [0:0]"}, True, True),
        ({"nft": "", "iptables-legacy-save": ":KUBE-SERVICES - [0:0]"}, False, False),
    ],
)
def test_kube_proxy_is_seen_in_any_of_its_modes(
    monkeypatch: pytest.MonkeyPatch, outputs: dict[str, str], legacy: bool, expected: bool
) -> None:
    monkeypatch.setattr(takeover, "_output", lambda *command: outputs.get(command[0]))
    monkeypatch.setattr(takeover, "_legacy_nat", lambda: legacy)
    assert takeover.kube_proxy_rules() is expected


def test_the_answer_is_renewed_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [True, True, False]
    monkeypatch.setattr(takeover, "kube_proxy_rules", lambda: answers.pop(0))
    watcher = takeover.Watcher("auto")
    assert watcher.present
    assert not watcher.poll(now=0.0)
    changed = []
    for i in range(1, 3):
        assert not watcher.poll(now=i * takeover.CHECK_SECONDS)
        assert watcher._asked is not None
        watcher._asked.exception(timeout=5)
        changed.append(watcher.poll(now=i * takeover.CHECK_SECONDS + 1))
    assert changed == [False, True]
    assert not watcher.present
    watcher.stop()


@pytest.mark.parametrize(("mode", "expected"), [("on", True), ("off", False)])
def test_a_given_answer_is_not_looked_for(
    monkeypatch: pytest.MonkeyPatch, mode: str, expected: bool
) -> None:
    def never() -> bool:
        raise AssertionError

    monkeypatch.setattr(takeover, "kube_proxy_rules", never)
    watcher = takeover.Watcher(mode)
    assert not watcher.poll(10**6)
    assert watcher.present is expected
