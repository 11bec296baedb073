"""Maps that are exchanged for larger ones while programs use them, and the agent writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ebpf import instance, maps
from ebpf.errors import KernelError
from ebpf.instance import Instance, Sizes
from ebpf.kernel import bpffs, testrun
from ebpf.layouts import Bundle
from ebpf.maps import migrate
from ebpf.programs import (
    Generation,
    count_generations,
    drop_other_generations,
    load_generation,
)
from tests.kernel.support.programs import MACHINE_BPFFS, small_bundle, unique

pytestmark = pytest.mark.kernel

SMALL = Sizes(16, 16, 64)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return small_bundle()


@pytest.fixture
def made(bundle: Bundle) -> Iterator[Instance]:
    bpffs.mount()
    path = MACHINE_BPFFS / unique("growing")
    with Instance.create_or_open(path, bundle, SMALL) as found:
        yield found
    instance.remove(path)


def asks(generation: Generation) -> int:
    """The flags of service 0, as these programs see it."""
    return testrun.run(generation.fds["entry_call"], bytes(60)).retval


def test_programs_see_what_is_written_before_and_after(made: Instance, bundle: Bundle) -> None:
    made.services.records["flags"][[0, 3]] = 5, 7
    with load_generation(bundle, made) as before:
        made.enlarge({"services": 64})
        assert made.former() is None
        assert made.services.max_entries == 16
        with load_generation(bundle, made) as after:
            assert asks(after) == 0  # it has the larger map, which is empty yet
            made.switch()
            assert made.services.max_entries == 64
            assert asks(before) == asks(after) == 5
            former = made.former()
            assert former is not None
            assert former.services.max_entries == 16
            assert former.counters is made.counters
            for tables in (former, made):
                tables.services.records["flags"][0] = 6
            assert asks(before) == asks(after) == 6
            made.finish()
            assert made.former() is None
            assert drop_other_generations(bundle, made) == 1
            assert count_generations(made) == 1
            made.services.records["flags"][0] = 8
            assert (asks(before), asks(after)) == (6, 8)
    assert made.services.records["flags"][3] == 7
    assert not (made.pin_dir / "old").exists()


def test_a_process_that_ends_before_the_switch_leaves_what_was_there(
    made: Instance, bundle: Bundle
) -> None:
    made.services.records["flags"][3] = 7
    made.enlarge({"services": 64})
    load_generation(bundle, made).close()
    assert count_generations(made) == 1
    with Instance.open(made.pin_dir) as another:
        assert another.services.max_entries == 16
        assert another.services.records["flags"][3] == 7


def test_one_that_ends_after_it_leaves_the_larger_map(made: Instance, bundle: Bundle) -> None:
    made.services.records["flags"][3] = 7
    made.enlarge({"services": 64})
    made.switch()
    path = made.pin_dir
    made.close()
    with Instance.create_or_open(path, bundle, SMALL) as another:
        assert another.services.max_entries == 64
        assert another.services.records["flags"][3] == 7
        assert another.former() is None
        another.finish()
        assert not (path / "old").exists()


def test_what_programs_count_meanwhile_is_not_lost(made: Instance) -> None:
    """backend_live and service_counters of the full bundle are such maps."""
    spec = made.services.spec
    old, new = maps.create(spec, 16), maps.create(spec, 32)
    assert isinstance(old, maps.ArrayMap)
    assert isinstance(new, maps.ArrayMap)
    old.records["cluster"][[1, 2]] = 10, 20
    before = old.records.copy()
    new.records[:16] = before
    old.records["cluster"][1] += np.uint64(5)  # by programs that are still in place
    old.records["local"][2] -= np.uint64(1)
    new.records["cluster"][1] += np.uint64(7)  # by the new ones
    new.records["local"][2] += np.uint64(1)
    migrate.add_later(before, old.records, new.records)
    assert new.records["cluster"][:3].tolist() == [0, 22, 20]
    assert new.records["local"][:3].tolist() == [0, 0, 0]
    old.close()
    new.close()


def test_without_memory_nothing_changes(made: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    create, count = maps.create, len(os.listdir("/proc/self/fd"))

    def second_fails(spec: object, entries: int) -> object:
        monkeypatch.setattr(maps, "create", refuse)
        return create(spec, entries)  # type: ignore[arg-type]

    def refuse(*_: object) -> object:
        raise KernelError("no", 12)

    monkeypatch.setattr(maps, "create", second_fails)
    with pytest.raises(KernelError):
        made.enlarge({"services": 64, "counters": 64})
    assert made.map_fds()["services"] == made.services.fd
    assert len(os.listdir("/proc/self/fd")) <= count + 1


@pytest.mark.parametrize("path", [Path("maps"), Path("programs")])
def test_nothing_of_it_is_pinned_before_the_switch(made: Instance, path: Path) -> None:
    before = sorted((made.pin_dir / path).iterdir())
    made.enlarge({"services": 64})
    assert sorted((made.pin_dir / path).iterdir()) == before
