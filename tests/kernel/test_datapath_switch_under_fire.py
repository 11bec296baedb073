"""The switch of a service's set, while lookups go on without pause on another CPU.

LBCTL_FIRE_RUNS sets the number of lookups, 10 million unless set. 100 million, with 2.4 million
switches meanwhile, took 15 s on the development machine, and none of them went wrong.
"""

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.support import model
from tests.kernel.support.conversation import PORT, SERVICE, Conversation
from tests.kernel.support.fire import (
    FIRST_SET,
    SIZES,
    STRIDE,
    Range,
    Updater,
    fire_bundle,
    updating,
)
from tests.kernel.support.packets import Shape
from tests.kernel.support.world import World

pytestmark = [pytest.mark.kernel, pytest.mark.alone, pytest.mark.timeout(900)]
RUNS = int(os.environ.get("LBCTL_FIRE_RUNS", "10000000"))
SWITCHES = 2000
ENOUGH = RUNS // 1000  # sets that were met
ROUNDS = 10  # on a machine where the updater gets little time


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Range]:
    """A world with room for many regions, and the program that judges."""
    directory: Path = tmp_path_factory.mktemp("fire")
    world = World(SIZES)
    made = Range(world, fire_bundle(directory))
    yield made
    made.close()
    world.close()


@pytest.fixture
def cpus() -> Iterator[tuple[int, int] | tuple[None, None]]:
    """One for the lookups, which this process is pinned to, and one for the updater."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        yield None, None
        return
    mine, other = sorted(before)[:2]
    os.sched_setaffinity(0, {mine})
    yield mine, other
    os.sched_setaffinity(0, before)


def _updater(target: Range, protocol: str = "tcp", careless: bool = False) -> Updater:
    target.world.reset()
    service = target.world.add_service(SERVICE[4], PORT, protocol)
    target.aim(service)
    made = Updater(target.world, service, target.epochs, careless=careless)
    made.switch()
    return made


def _wait_for_switches(target: Range, count: int) -> None:
    """Until the updater is at work (a loaded machine may start it late)."""
    first = target.epochs.load_word(0, "committed")
    deadline = time.monotonic() + 60
    while target.epochs.load_word(0, "committed") < first + count:
        assert time.monotonic() < deadline, "the updater does not get to work"
        time.sleep(0.001)


def test_every_lookup_finds_a_member_of_the_old_set_or_the_new_one(
    target: Range, cpus: tuple[int | None, int | None]
) -> None:
    """Not one foreign, torn, refused or missing in so many lookups and switches."""
    with updating(_updater(target), cpus[1]):
        _wait_for_switches(target, SWITCHES)
        for _ in range(ROUNDS):
            target.lookups(RUNS)
            if target.counts()["sets"] > ENOUGH:
                break
        _wait_for_switches(target, SWITCHES)
    counts = target.counts()
    assert counts.pop("lookups") >= RUNS
    assert counts.pop("sets") > ENOUGH
    assert counts == dict.fromkeys(counts, 0)
    assert all(target.members())


def test_the_judge_notices_a_careless_updater(
    target: Range, cpus: tuple[int | None, int | None]
) -> None:
    """The same with a region that is written in place: or the test above could not fail."""
    with updating(_updater(target, careless=True), cpus[1]):
        _wait_for_switches(target, SWITCHES)
        for _ in range(100):
            target.lookups(200_000)
            if target.counts()["foreign"]:
                break
    assert target.counts()["foreign"] > 0


def test_whole_packets_go_to_the_old_set_or_the_new_one(
    target: Range, cpus: tuple[int | None, int | None]
) -> None:
    """New flows through the real programs: all forwarded, each to a backend that was possible."""
    updater = _updater(target, "udp")
    first = Conversation(target.world, Shape(4, "udp"), updater.service).request(payload=b"x")
    frames = [
        model.rewrite(first, src=f"10.1.0.{client}", sport=port)
        for client in range(2, 12)
        for port in range(20000, 21000)
    ]
    before = after = 0
    seen = set()
    with updating(updater, cpus[1]):
        _wait_for_switches(target, SWITCHES)
        for frame in frames:
            before = target.epochs.load_word(0, "committed")
            ((verdict, out),) = target.world.run_many("entry_from_pod", [frame])
            after = target.epochs.load_word(0, "started")
            assert verdict == model.PASS
            chosen = model.tuple_of(out)
            number = struct.unpack("=I", chosen.dst)[0]
            assert FIRST_SET < before <= number <= after
            member, length = divmod(struct.unpack("=H", struct.pack("!H", chosen.dport))[0], 256)
            assert member < length <= STRIDE
            seen.add(number)
    assert len(seen) > 20  # it did switch meanwhile, however busy the machine
