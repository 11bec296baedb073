"""Instances whose maps get another layout or size: what they hold is carried over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ebpf import maps
from ebpf.compile import compiler
from ebpf.errors import KernelError
from ebpf.instance import Instance, Sizes
from ebpf.kernel import bpffs, libbpf, testrun
from ebpf.layouts import ARRAY, F_MMAPABLE, HASH, Bundle, Field, MapSpec, Record
from ebpf.maps import declared
from ebpf.programs import drop_other_generations, load_generation
from lbctl.datapath.frontends import Frontends
from tests.kernel.support.instances import SMALL, WORD, add_flows, bundle, flows, pin_dir, wide
from tests.kernel.support.programs import flows4

pytestmark = pytest.mark.kernel
__all__ = ["bundle", "pin_dir", "wide"]


def test_a_new_layout_keeps_the_flows(pin_dir: Path, bundle: Bundle, wide: Bundle) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL) as old:
        add_flows(old, 0, 30)
        old.services.records[2] = (7, 8, 9)
        generation = load_generation(bundle, old)
        old_id = flows4(old).id
    with Instance.create_or_open(pin_dir, wide, SMALL) as made:
        assert flows4(made).id != old_id
        assert flows4(made).spec == wide.maps["flows4"]
        assert flows(made) == list(range(30))
        assert made.services.records[2].tolist() == (7, 8, 9)
        # The old programs still run, on the old map.
        kept = maps.wrap(
            bundle.maps["flows4"], libbpf.obj_get(str(pin_dir / "old" / f"flows4-{old_id}"))
        )
        assert isinstance(kept, maps.HashMap)
        kept.put(
            kept.spec.key.pack(src=100), kept.spec.value.pack(addr=100, mac=bytes(range(1, 7)))
        )
        assert testrun.run(generation.fds["entry_call"], bytes(60)).retval == 0
        with load_generation(wide, made) as fresh:
            assert testrun.run(fresh.fds["entry_call"], bytes(60)).retval == 0
            assert made.finish() == 1
            assert drop_other_generations(wide, made) == 1
        assert flows(made) == [*range(30), 100]
        assert not (pin_dir / "old").exists()
        kept.close()
    generation.close()
    with Instance.open(pin_dir) as reader:
        assert flows(reader) == [*range(30), 100]


def hashed_frontends() -> MapSpec:
    """`frontends` as earlier versions had it."""
    addr = Field("addr", 0, 16, 0, "struct", (Field("w", 0, 16, 4, "u32"),))
    rest = (Field("port", 16, 2, 0, "u16"), Field("proto", 18, 1, 0, "u8"))
    key = Record("frontend_key", 20, (addr, *rest, Field("pad", 19, 1, 0, "u8")))
    itself = Field("self", 0, 20, 0, "struct", key.fields)
    numbers = (Field("service", 20, 4, 0, "u32"), Field("flags", 24, 4, 0, "u32"))
    return MapSpec("frontends", HASH, 0, key, Record("frontend", 28, (itself, *numbers)))


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed before the switch"])
def test_frontends_of_earlier_versions_are_taken_over(pin_dir: Path, killed: bool) -> None:
    """Before programs are put on the table. An element that was being reused is left out; the
    filters go once nobody looks at them."""
    bundle = compiler.bundle()
    word = Record("", 8, (Field("", 0, 8, 0, "u64"),))
    maps_then = {
        "frontends": hashed_frontends(),
        **{n: MapSpec(n, ARRAY, F_MMAPABLE, WORD, word) for n in declared.FORMER},
    }
    key = maps_then["frontends"].key.pack(addr=bytes(range(16)), port=80, proto=6)
    other = maps_then["frontends"].key.pack(addr=bytes(16), port=81, proto=17)
    with Instance.create_or_open(pin_dir, bundle, SMALL) as old:
        for name, spec in maps_then.items():
            (pin_dir / "maps" / name).unlink(missing_ok=True)
            made = maps.create(spec, 64)
            old.meta.note_map(made)
            bpffs.pin(made.fd, pin_dir / "maps" / name)
            if isinstance(made, maps.HashMap):
                made.put(key, key + np.array([7, 33], np.uint32).tobytes())
                made.put(other, key + np.array([8, 1], np.uint32).tobytes())
            made.close()
    if killed:
        Instance.create_or_open(pin_dir, bundle, SMALL).close()
    with Instance.create_or_open(pin_dir, bundle, SMALL) as new:
        assert {*declared.FORMER} <= {*new.map_names()}
        found = Frontends(new.frontends).read_all()
        assert [k.tobytes() for k in found.keys] == [key[:19]]
        assert (found.services.tolist(), found.flags.tolist()) == ([7], [33])
        assert Frontends(new.frontends).get(key[:19]) == (7, 33)
        new.finish()
        assert not {*declared.FORMER} & {*new.map_names()}
        new.require(bundle)
    assert not (pin_dir / "old").exists()


def test_a_larger_table_of_frontends_is_filled_anew(pin_dir: Path) -> None:
    """A key's place depends on how many there are: what was at one place is at another."""
    bundle = compiler.bundle()
    entries = [(bytes([10, n]).ljust(19, b"\1"), n + 1, 1) for n in range(40)]
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        Frontends(made.frontends).put(entries)
        before, room = made.frontends.id, Frontends(made.frontends).room
    with Instance.create_or_open(pin_dir, bundle, Sizes(160, 160, 64)) as made:
        assert made.frontends.id != before
        larger = Frontends(made.frontends)
        assert larger.room > 9 * room
        assert [larger.get(k) for k, _, _ in entries] == [(s, f) for _, s, f in entries]
        assert len(larger.read_all().keys) == 40


def test_what_ended_meanwhile_does_not_come_back(
    pin_dir: Path, bundle: Bundle, wide: Bundle
) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL) as old:
        add_flows(old, 0, 10)
    with Instance.create_or_open(pin_dir, wide, SMALL) as made:
        keys, _ = flows4(made).read_all()
        assert flows4(made).delete_many(keys[keys["src"] < 3]) == 3
        assert made.finish() == 0
        assert flows(made) == list(range(3, 10))


def test_what_the_agent_removed_does_not_come_back(pin_dir: Path, bundle: Bundle) -> None:
    spec = bundle.maps["flows4"]
    maps_now = bundle.maps | {"names": MapSpec("names", spec.type, 0, spec.key, spec.value)}
    named = Bundle(bundle.hash, bundle.variant, bundle.programs, maps_now, bundle.enums)
    with Instance.create_or_open(pin_dir, named, Sizes(4, 4, 4)) as made:
        made.names.put(bytes(8), bytes(24))
    with Instance.create_or_open(pin_dir, named, Sizes(8, 8, 8)) as made:
        assert made.names.max_entries == 8
        assert made.names.delete(bytes(8))
        made.finish()
        assert made.names.get(bytes(8)) is None


def test_a_larger_size_keeps_the_flows(pin_dir: Path, bundle: Bundle) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        add_flows(made, 0, 128)
        with pytest.raises(KernelError, match="is full"):
            add_flows(made, 128, 1)
    with Instance.create_or_open(pin_dir, bundle, Sizes(16, 16, 1000)) as made:
        assert flows4(made).max_entries == 2000
        assert made.finish() == 0
        add_flows(made, 128, 100)
        assert flows(made) == list(range(228))


def test_smaller_or_unnamed_sizes_change_nothing(pin_dir: Path, bundle: Bundle) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        before = flows4(made).id
    for sizes in (Sizes(1, 1, 1), None):
        with Instance.create_or_open(pin_dir, bundle, sizes) as made:
            assert flows4(made).id == before


def test_a_start_killed_before_the_switch_loses_nothing(
    pin_dir: Path, bundle: Bundle, wide: Bundle
) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        add_flows(made, 0, 10)
    with Instance.create_or_open(pin_dir, wide, SMALL) as made:
        add_flows(made, 10, 5)  # and dies here, before finish
    with Instance.create_or_open(pin_dir, bundle, Sizes(16, 16, 100)) as made:
        assert made.finish() == 0
        assert flows(made) == list(range(15))
        assert not (pin_dir / "old").exists()


def test_more_counters_keep_their_sums(pin_dir: Path, bundle: Bundle) -> None:
    more = Bundle(
        bundle.hash, bundle.variant, bundle.programs, bundle.maps, bundle.enums | {"REASON_MAX": 5}
    )
    with (
        Instance.create_or_open(pin_dir, bundle, SMALL) as made,
        load_generation(bundle, made) as g,
    ):
        testrun.run(g.fds["entry_recount"], bytes(60), repeat=3)
    with Instance.create_or_open(pin_dir, more, SMALL) as made:
        assert made.counters.read_sum().tolist() == [3, 3, 0, 0, 0]
