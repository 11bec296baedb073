"""The agent's side of `lbctl observe`: who listens gets what is told from then on, and knows how
much it did not get; nothing is written while nobody does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from ebpf.flowevents import EVENT
from ebpf.maps.base import Records
from lbctl import status
from lbctl.datapath import clock
from lbctl.errors import LbError, NotFound
from lbctl.observe import hub as hubs
from lbctl.observe import wire
from lbctl.observe.hub import Hub
from lbctl.observe.listener import Listener
from lbctl.observe.wire import Frames, Told, Wanted
from lbctl.threads import Watched
from tests.support.fake_tables import FakeTables
from tests.support.waiting import wait_until

BOUND = 10.0


class FakeRing:
    """What programs have told and nobody has read; they tell from another thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.told: list[Records] = []

    def read_records(self, dtype: np.dtype[Any]) -> Records:
        with self.lock:
            found, self.told = self.told, []
        return np.concatenate([np.empty(0, dtype), *found])


class Rig:
    def __init__(self, pin_dir: Path) -> None:
        self.pin_dir = pin_dir
        self.ring = FakeRing()
        self.tables = FakeTables()
        self.hub = Hub(pin_dir, cast(Any, self.ring), self.tables)
        self.thread = Watched("events", self.hub.work)
        self.thread.start()
        wait_until(wire.path_of(pin_dir).exists, BOUND)

    def listen(self, wanted: Wanted | None = None) -> Listener:
        return Listener(self.pin_dir, wanted or Wanted())

    def tell(self, *ports: int) -> None:
        events = np.zeros(len(ports), EVENT)
        events["sport"], events["time"] = ports, time.monotonic_ns()
        with self.ring.lock:
            self.ring.told.append(events)

    def lose(self, number: int) -> None:
        self.tables.cpus.records["unheard"][0] += number

    @property
    def until(self) -> int:
        return int(self.tables.config.records["events_until"][0])

    def close(self) -> None:
        self.thread.stop()
        assert self.thread.join(BOUND)
        assert self.thread.restarts == 0
        assert not self.thread.problem


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(status, "RUN_DIR", tmp_path / "run")
    made = Rig(tmp_path / "pins")
    yield made
    made.close()


def ports(listener: Listener, told: Told = Told.NOW) -> tuple[list[int], int]:
    """All until the end: what was told, and how many were lost."""
    listener.finish()
    found: list[int] = []
    lost = 0
    until = time.monotonic() + BOUND
    while not listener.ended and time.monotonic() < until:
        for frame in listener.frames(0.1):
            lost = frame.lost
            if (frame.told is Told.PAST) == (told is Told.PAST):
                found += frame.records["sport"].tolist()
    assert listener.ended
    return found, lost


def test_nobody_listens_until_somebody_does(rig: Rig) -> None:
    assert rig.until == 0
    with rig.listen():
        assert rig.until > clock.current_beat()
    wait_until(lambda: rig.until == 0, BOUND)
    assert rig.hub.listeners == 0


def test_it_is_said_again_and_again(rig: Rig) -> None:
    with rig.listen():
        rig.tables.config.records["events_until"] = 1
        wait_until(lambda: rig.until > clock.current_beat(), BOUND)


def test_each_gets_what_is_told_from_its_beginning_on(rig: Rig) -> None:
    rig.tell(9)  # what an agent left that was killed
    with rig.listen() as first:
        rig.tell(1, 2)
        wait_until(lambda: not rig.ring.told, BOUND)
        with rig.listen() as second:
            rig.tell(3)
            assert ports(second) == ([3], 0)
        rig.tell(4)
        assert ports(first) == ([1, 2, 3, 4], 0)


def test_losses_are_counted_from_its_beginning_on(rig: Rig) -> None:
    rig.lose(100)
    with rig.listen() as first:
        rig.lose(5)
        rig.tell(1)
        wait_until(lambda: not rig.ring.told, BOUND)
        with rig.listen() as second:
            rig.lose(2)
            assert ports(second) == ([], 2)
        assert ports(first) == ([1], 7)


def test_losses_are_told_although_nothing_else_is(rig: Rig) -> None:
    with rig.listen() as listener:
        rig.lose(3)
        until = time.monotonic() + BOUND
        lost = 0
        while not lost and time.monotonic() < until:
            lost = max((frame.lost for frame in listener.frames(1.0)), default=0)
        assert lost == 3


def test_who_is_too_slow_loses_and_knows(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody else does."""
    monkeypatch.setattr(hubs, "_MOST_BEHIND", 1 << 20)
    many = range(10_000)
    with rig.listen() as slow:
        told = 0
        while not rig.hub.dropped:
            rig.tell(*many)
            told += len(many)
            wait_until(lambda: not rig.ring.told, BOUND)
        with rig.listen() as quick:
            rig.tell(1)
            assert ports(quick) == ([1], 0)
        found, lost = ports(slow)
        assert lost == rig.hub.dropped
        assert len(found) + lost == told + 1


def test_what_was_told_to_others(rig: Rig) -> None:
    with rig.listen():
        rig.tell(1, 2)
        wait_until(lambda: not rig.ring.told, BOUND)
        middle = time.monotonic_ns()
        rig.tell(3, 4, 5)
        wait_until(lambda: not rig.ring.told, BOUND)
        for wanted, found in (
            (Wanted(), []),
            (Wanted(last=2), [4, 5]),
            (Wanted(since=1), [1, 2, 3, 4, 5]),
            (Wanted(since=middle), [3, 4, 5]),
            (Wanted(last=1, since=middle), [5]),
        ):
            with rig.listen(wanted) as listener:
                assert ports(listener, Told.PAST) == (found, 0)


def test_no_more_is_kept_than_there_is_room_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "_KEPT", 100)
    with rig.listen():
        for _ in range(30):
            rig.tell(*range(10))
            wait_until(lambda: not rig.ring.told, BOUND)
        with rig.listen(Wanted(since=1)) as listener:
            assert 100 <= len(ports(listener, Told.PAST)[0]) <= 110


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b"x" * (wire.MOST_LINE + 1)])
def test_who_makes_no_sense_is_sent_away(rig: Rig, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND)
        sock.connect(str(wire.path_of(rig.pin_dir)))
        sock.sendall(line)
        with contextlib.suppress(ConnectionResetError):  # it had more to say
            assert sock.recv(10) == b""
    with rig.listen() as other:
        rig.tell(1)
        assert ports(other) == ([1], 0)


def test_there_is_a_bound_on_listeners(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "_MOST_LISTENERS", 2)
    with rig.listen(), rig.listen(), pytest.raises(LbError):
        rig.listen()


def test_without_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "RUN_DIR", tmp_path / "run")
    with pytest.raises(NotFound, match="no agent"):
        Listener(tmp_path, Wanted())


def test_the_next_agent_takes_the_place_of_one_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "RUN_DIR", tmp_path / "run")
    Rig(tmp_path / "pins").close()
    again = Rig(tmp_path / "pins")
    wait_until(lambda: listens(again), BOUND)
    again.close()


def listens(rig: Rig) -> bool:
    try:
        rig.listen().close()
    except NotFound:
        return False
    return True


def test_frames_in_any_pieces() -> None:
    events = np.zeros(3, EVENT)
    events["sport"] = 1, 2, 3
    stream = wire.frame(Told.PAST, events[:2], 0) + wire.frame(Told.LAST, events[2:], 7)
    for size in (1, 7, 128, len(stream)):
        frames = Frames(EVENT)
        found = [
            frame
            for at in range(0, len(stream), size)
            for frame in frames.take(stream[at : at + size])
        ]
        assert [(f.told, f.lost, f.records["sport"].tolist()) for f in found] == [
            (Told.PAST, 0, [1, 2]),
            (Told.LAST, 7, [3]),
        ]


def test_the_line_tells_how_records_are_laid_out() -> None:
    said = msgspec.json.decode(wire.hello(5), type=wire.Hello)
    assert said.dtype == EVENT
    assert said.listening == 5


def test_a_place_that_cannot_be_had_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "RUN_DIR", tmp_path / "run")
    monkeypatch.setattr(hubs, "_AGAIN_SECONDS", 0.05)
    (tmp_path / "run").write_text("no directory")
    hub = Hub(tmp_path / "pins", cast(Any, FakeRing()), FakeTables())
    thread = Watched("events", hub.work)
    thread.start()
    wait_until(lambda: hub.problem, BOUND)
    assert str(tmp_path / "run") in hub.problem
    (tmp_path / "run").unlink()
    wait_until(lambda: wire.path_of(tmp_path / "pins").exists(), BOUND)
    wait_until(lambda: not hub.problem, BOUND)
    thread.stop()
    assert thread.join(BOUND)
