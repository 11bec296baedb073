"""Programs that a data path does without, and those that come last."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf.compile import compiler
from ebpf.errors import Abandoned, CompileError
from ebpf.instance import Instance
from ebpf.kernel import libbpf
from ebpf.layouts import CGROUP_SOCK, CGROUP_SOCK_ADDR, XDP, Bundle
from ebpf.maps.sizes import Sizes
from ebpf.parts import used
from ebpf.programs import Generation, load_generation, load_lists
from tests.kernel.support.instances import pin_dir

pytestmark = pytest.mark.kernel
__all__ = ["pin_dir"]

FEW = {"entry_from_pod", "refuse4", "refuse6", "publish_listed4", "publish_listed6"}
LISTS = {"publish_listed4", "publish_listed6"}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A few programs of each kind."""
    whole = compiler.bundle()
    return whole.without(whole.programs.keys() - FEW)


@pytest.fixture
def made(pin_dir: Path, bundle: Bundle) -> Iterator[Instance]:
    with Instance.create_or_open(pin_dir, bundle, Sizes(64, 64, 64)) as found:
        yield found


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the programs that the kernel was given."""
    names: list[str] = []
    load = libbpf.prog_load

    def note(kind: int, name: str, *rest: int, **more: int) -> int:
        names.append(name)
        return load(kind, name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(libbpf, "prog_load", note)
    return names


def ids(generation: Generation) -> dict[str, int]:
    both = {**generation.fds, **generation.tails}
    return {name: libbpf.prog_id(fd) for name, fd in both.items()}


def test_what_is_off_has_no_programs() -> None:
    whole = compiler.bundle()
    off = used(whole, Sizes(sockets=False, fast_path=False))
    assert off.hash != whole.hash
    kinds = {program.prog_type for program in off.programs.values()}
    assert not kinds & {XDP, CGROUP_SOCK, CGROUP_SOCK_ADDR}
    fast = {"go_past4", "track_past4", "learn_hops4"}
    assert fast < off.left_out == whole.programs.keys() - off.programs.keys()
    assert off.maps == whole.maps
    sockets = used(whole, Sizes(sockets=True, fast_path=False))
    assert "sock_connect4" in sockets.programs
    assert not fast & sockets.programs.keys()
    past = used(whole, Sizes(sockets=False, fast_path=True))
    assert fast | {"xdp_uplink", "xdp_forward6"} < past.programs.keys()
    assert used(whole, Sizes(sockets=True, fast_path=True)) is whole


def test_only_what_was_left_out_may_be_missing(bundle: Bundle, made: Instance) -> None:
    programs = {name: one for name, one in bundle.programs.items() if name != "refuse4"}
    lacking = Bundle(
        bundle.hash, bundle.variant, programs, bundle.maps, bundle.enums, bundle.left_out
    )
    with pytest.raises(CompileError, match="refuse4"):
        Generation.load(lacking, made.map_fds())


def test_programs_over_lists_come_when_they_are_asked_for(
    bundle: Bundle, made: Instance, loaded: list[str]
) -> None:
    with load_generation(bundle, made, lists=False) as generation:
        assert {*loaded} == FEW - LISTS
        load_lists(generation, bundle, made)
        assert sorted(loaded) == sorted(FEW)
        before = ids(generation)
        assert before.keys() == FEW
        load_lists(generation, bundle, made)
    with load_generation(bundle, made) as again:
        assert ids(again) == before
    assert len(loaded) == len(FEW)


def test_a_generation_whose_agent_was_killed_before_that_is_completed(
    bundle: Bundle, made: Instance, loaded: list[str]
) -> None:
    with load_generation(bundle, made, lists=False) as generation:
        before = ids(generation)
    loaded.clear()
    with load_generation(bundle, made) as again:
        assert {*loaded} == LISTS
        assert ids(again).items() > before.items()


def test_nobody_waits_for_all_programs_who_wants_to_end(
    bundle: Bundle, made: Instance, loaded: list[str]
) -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Abandoned):
        load_generation(bundle, made, stopping=stopping)
    assert not list((made.pin_dir / "programs").iterdir())
    with load_generation(bundle, made) as generation:
        assert ids(generation).keys() == FEW
