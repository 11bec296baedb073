"""Instances: pins, locks, generations, and the end of all of it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from ebpf import instance, maps, programs
from ebpf.errors import InUseError, KernelError, LayoutError, LbError, MissingFeature
from ebpf.instance import Instance
from ebpf.kernel import bpffs, libbpf, testrun
from ebpf.layouts import Bundle
from ebpf.programs import drop_other_generations, load_generation
from tests.kernel.support.instances import SMALL, add_flows, bundle, flows, pin_dir, wide
from tests.kernel.support.programs import flows4, small_bundle

pytestmark = pytest.mark.kernel
__all__ = ["bundle", "pin_dir", "wide"]


def test_what_is_created_is_found_again(pin_dir: Path, bundle: Bundle) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        names = made.map_names()
        ids = {name: made.map(name).id for name in names}
        made.services.records[3] = (1, 2, 3)
        add_flows(made, 0, 5)
    assert names == sorted(bundle.maps.keys() - {"programs"})
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        assert {name: made.map(name).id for name in names} == ids
        assert made.services.records[3].tolist() == (1, 2, 3)
        assert flows(made) == [0, 1, 2, 3, 4]


def test_readers_need_no_bundle_and_write_nothing(pin_dir: Path, bundle: Bundle) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        add_flows(made, 0, 2)
        with Instance.open(pin_dir) as reader:
            assert flows(reader) == [0, 1]
            assert reader.enums == bundle.enums
            assert flows4(reader).spec == bundle.maps["flows4"]
            reader.require(bundle)
            made.services.store_word(1, "cluster", 42)
            assert reader.services.records["cluster"][1] == 42
            assert reader.counters.read_sum().tolist() == [0, 0]
            with pytest.raises(KernelError, match="opened for reading"):
                flows4(reader).delete(bytes(8))
            with pytest.raises(ValueError, match="read-only"):
                reader.services.records["cluster"] = 1
            with pytest.raises(TypeError):
                reader.services.store_word(0, "cluster", 1)


def test_reading_starts_without_the_heavy_libraries() -> None:
    code = (
        "import sys, ebpf.instance; "
        "print(*sorted({'bcc', 'pyroute2', 'subprocess_'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_an_absent_instance_is_named(pin_dir: Path) -> None:
    with pytest.raises(LbError, match=f"no instance at {pin_dir}"):
        Instance.open(pin_dir)


def test_someone_who_may_not_read_is_told(pin_dir: Path, bundle: Bundle) -> None:
    code = (
        "import os, ebpf.instance, ebpf.errors\nos.setuid(65534)\n"
        f"try: ebpf.instance.Instance.open({str(pin_dir)!r})\n"
        "except ebpf.errors.LbError as error: print(error)"
    )
    with Instance.create_or_open(pin_dir, bundle, SMALL):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
    assert "Permission denied" in done.stdout
    assert "root" in done.stdout


def test_a_map_of_another_version_is_named(pin_dir: Path, bundle: Bundle, wide: Bundle) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL):
        with Instance.open(pin_dir) as reader, pytest.raises(LayoutError, match="has no map slots"):
            _ = reader.slots
        with Instance.open(pin_dir) as reader, pytest.raises(LayoutError, match="map flows4 of"):
            reader.require(wide)


def test_a_pin_that_was_exchanged_is_noticed(pin_dir: Path, bundle: Bundle) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL):
        pass
    foreign = libbpf.map_create(maps.HASH, "foreign", 4, 4, 10)
    bpffs.pin(foreign, pin_dir / "maps" / "flows4")
    with Instance.open(pin_dir) as reader, pytest.raises(LayoutError, match="flows4"):
        _ = flows4(reader)
    with pytest.raises(LayoutError, match="flows4"):
        Instance.create_or_open(pin_dir, bundle, SMALL)


def test_a_meta_map_that_is_none_is_noticed(pin_dir: Path, bundle: Bundle) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL):
        pass
    bpffs.pin(libbpf.map_create(maps.HASH, "foreign", 4, 4, 10), pin_dir / "meta")
    with pytest.raises(LayoutError, match=r"meta is not what .* keys of 4 and values of 4"):
        Instance.open(pin_dir)


def test_one_writer_at_a_time(pin_dir: Path, bundle: Bundle) -> None:
    code = (
        "import sys; from pathlib import Path; from ebpf.kernel.bpffs import Lock; "
        f"lock = Lock(Path({str(pin_dir)!r})); print('held', flush=True); sys.stdin.read()"
    )
    with Instance.create_or_open(pin_dir, bundle, SMALL):
        pass
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InUseError, match=f"in use by process {holder.pid} "):
            Instance.create_or_open(pin_dir, bundle, SMALL)
        holder.kill()
    # The lock goes with its holder, however that ends.
    Instance.create_or_open(pin_dir, bundle, SMALL).close()


def test_a_failed_start_lets_go_of_the_lock(
    pin_dir: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise KernelError("no", errno.ENOMEM)

    with monkeypatch.context() as patched:
        patched.setattr(maps, "create", refuse)
        with pytest.raises(KernelError):
            Instance.create_or_open(pin_dir, bundle, SMALL)
    Instance.create_or_open(pin_dir, bundle, SMALL).close()


def test_an_ordinary_directory_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(MissingFeature, match="not in a BPF file system"):
        Instance.create_or_open(tmp_path / "pins", bundle, SMALL)


def test_the_same_code_is_loaded_once(
    pin_dir: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        with load_generation(bundle, made) as first:
            ids = {name: libbpf.prog_info(fd).id for name, fd in first.fds.items()}
        made.services.records["flags"][0] = 5

        def refuse(*_: object) -> int:
            raise AssertionError("loaded again")

        monkeypatch.setattr(libbpf, "prog_load", refuse)
        with load_generation(bundle, made) as second:
            assert {name: libbpf.prog_info(fd).id for name, fd in second.fds.items()} == ids
            # Nothing but pins has held the tail-called programs in between.
            assert testrun.run(second.fds["entry_call"], bytes(60)).retval == 5
        assert drop_other_generations(bundle, made) == 0


def test_another_code_is_another_generation(pin_dir: Path, bundle: Bundle) -> None:
    other = small_bundle(OTHER="1")
    with (
        Instance.create_or_open(pin_dir, bundle, SMALL) as made,
        load_generation(bundle, made) as first,
        load_generation(other, made) as second,
    ):
        assert first.arrays["programs"].id != second.arrays["programs"].id
        assert len(list((pin_dir / "programs").iterdir())) == 2
        assert drop_other_generations(other, made) == 1
        assert [p.name for p in (pin_dir / "programs").iterdir()] == [
            programs.generation_key(other, made)
        ]


def test_an_interrupted_load_leaves_nothing_behind(
    pin_dir: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError("killed")))
            with pytest.raises(OSError, match="killed"):
                load_generation(bundle, made)
        with load_generation(bundle, made):
            assert drop_other_generations(bundle, made) == 0


def test_removing_leaves_no_trace(pin_dir: Path, bundle: Bundle) -> None:
    with (
        Instance.create_or_open(pin_dir, bundle, SMALL) as made,
        load_generation(bundle, made),
        pytest.raises(InUseError),
    ):
        instance.remove(pin_dir)
    instance.remove(pin_dir)
    assert not pin_dir.exists()
    with pytest.raises(LbError, match="no instance"):
        instance.remove(pin_dir)
