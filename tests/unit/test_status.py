"""The status file: one per instance, its hints, and whether the agent that wrote it still runs."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from lbctl import status
from lbctl.status import StatusRecord, TableUse


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


def test_a_file_that_is_old_is_of_an_agent_that_hangs(run_dir: Path) -> None:
    assert status.age(run_dir) == 0
    status.write(StatusRecord(7, "1", "node1", str(run_dir), ready=True))
    assert status.age(run_dir) < status.BEAT_SECONDS
    long_ago = time.time() - 1000
    os.utime(status.path_of(run_dir), (long_ago, long_ago))
    assert status.age(run_dir) > status.OLD_SECONDS
