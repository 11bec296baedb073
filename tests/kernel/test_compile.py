"""Compiling: what comes out, the cache, and every way it can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ebpf import __main__ as entry
from ebpf import calls, maps
from ebpf.compile import children, compiler, constants, source
from ebpf.compile.source import Unit
from ebpf.errors import CompileError, KernelError
from ebpf.kernel import testrun
from ebpf.layouts import Bundle
from ebpf.maps.sizes import Sizes
from ebpf.programs import Generation, load
from tests.kernel.support.programs import SOURCES, UNITS, small_bundle

pytestmark = pytest.mark.kernel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LBCTL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a compilation is a failure."""

    def refuse(*_: object) -> object:
        raise AssertionError("compiled, where the cache has it")

    monkeypatch.setattr(children, "compile_unit", refuse)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SOURCES, tmp_path / "ebpf_c"))


TRIVIAL = """
#ifndef ANSWER
#define ANSWER 7
#endif
int f(struct __sk_buff *skb) { return ANSWER; }
"""


def _one(text: str, directory: Path, *defines: tuple[str, str]) -> Bundle:
    """A bundle of one unit with this text."""
    directory.mkdir(exist_ok=True)
    (directory / "one.c").write_text("#include <uapi/linux/bpf.h>\n" + text)
    return compiler.bundle(defines=defines, directory=directory, units=(Unit("one", "one.c"),))


def test_a_bundle_has_programs_maps_and_constants(cache: Path) -> None:
    bundle = small_bundle()
    assert sorted(bundle.programs) == [
        "entry_call",
        "entry_count",
        "entry_recount",
        "tail4",
        "tail6",
    ]
    assert bundle.programs["tail4"].unit == "family4"
    assert {n for _, n in bundle.programs["tail4"].relocations} == {
        "counters",
        "flows4",
        "services",
    }
    assert bundle.enums["MASK"] == (1 << 40) - 1
    assert bundle.tail_programs()["programs"] == {"tail4": 0, "tail6": 1}
    assert bundle.maps["flows4"].value.size == 24
    assert [f.name for f in bundle.maps["flows4"].value.fields] == ["addr", "bytes", "mac", "pad"]
    assert bundle.maps["services"].flags == maps.F_MMAPABLE


def test_the_cache_spares_the_compiler(
    cache: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = _one(TRIVIAL, tmp_path / "c")
    request.getfixturevalue("no_compiler")
    assert _one(TRIVIAL, tmp_path / "c") == first


def test_a_define_is_another_bundle(cache: Path, tmp_path: Path) -> None:
    one = _one(TRIVIAL, tmp_path / "c")
    other = _one(TRIVIAL, tmp_path / "c", ("ANSWER", "8"))
    assert one.hash != other.hash
    assert one.programs["f"].insns != other.programs["f"].insns
    assert len(list(cache.iterdir())) == 2


def test_what_a_unit_includes_is_part_of_what_it_is(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "answer.h").write_text("#define ANSWER 1\n")
    text = '#include "answer.h"\nint f(struct __sk_buff *skb) { return ANSWER; }\n'
    one = _one(text, tmp_path / "c")
    assert _one(text, tmp_path / "c").hash == one.hash
    (tmp_path / "c" / "answer.h").write_text("#define ANSWER 2\n")
    other = _one(text, tmp_path / "c")
    assert one.programs["f"].insns != other.programs["f"].insns
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_cache_is_compiled_again(cache: Path, tmp_path: Path) -> None:
    first = _one(TRIVIAL, tmp_path / "c")
    (path,) = cache.iterdir()
    for damaged in (b"", b"garbage", path.read_bytes()[:-20]):
        path.write_bytes(damaged)
        assert _one(TRIVIAL, tmp_path / "c") == first
        assert msgspec.msgpack.decode(path.read_bytes())["hash"] == first.hash


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LBCTL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert list(_one(TRIVIAL, tmp_path / "c").programs) == ["f"]


def test_old_bundles_are_forgotten(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "_KEPT_BUNDLES", 2)
    cache.mkdir()
    for number in range(4):
        (cache / f"{number}.bundle").write_text("")
        os.utime(cache / f"{number}.bundle", (number, number))
    (cache / "theirs").write_text("")
    made = _one(TRIVIAL, tmp_path / "c")
    assert {path.name for path in cache.iterdir()} == {"theirs", "3.bundle", f"{made.hash}.bundle"}


def test_what_is_used_is_forgotten_later(cache: Path, tmp_path: Path) -> None:
    made = cache / f"{_one(TRIVIAL, tmp_path / 'c').hash}.bundle"
    os.utime(made, (1, 1))
    _one(TRIVIAL, tmp_path / "c")
    assert made.stat().st_mtime > 1


def test_a_mistake_is_reported_at_its_own_line(cache: Path, sources: Path) -> None:
    with (sources / "maps.h").open("a") as stream:
        stream.write("\nint broken(void) { return nothing; }\n")
    line = len((sources / "maps.h").read_text().splitlines())
    with pytest.raises(CompileError, match=rf"ebpf_c/maps\.h:{line}:\d+: error: .*nothing"):
        compiler.bundle(directory=sources, units=UNITS)
    assert not cache.exists()


def test_too_large_a_stack_is_told(cache: Path, tmp_path: Path) -> None:
    text = "int f(struct __sk_buff *s) { volatile char b[600]; b[1] = 1; return b[s->len & 255]; }"
    with pytest.raises(CompileError, match="stack limit of 512 bytes"):
        _one(text, tmp_path / "c")


def test_a_function_call_is_refused(cache: Path, tmp_path: Path) -> None:
    text = """
    __attribute__((noinline)) static int g(int x) { volatile int y = x; return y * 3; }
    int f(struct __sk_buff *s) { return g(s->len) + g(s->mark); }
    """
    with pytest.raises(CompileError, match=r"always_inline|contains a call"):
        _one(text, tmp_path / "c")


def test_maps_that_differ_between_units_are_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text('BPF_F_TABLE("hash", u32, u32, same, 1, 0);\n')
    (tmp_path / "b.c").write_text('BPF_F_TABLE("hash", u32, u64, same, 1, 0);\n')
    with pytest.raises(CompileError, match="map same"):
        compiler.bundle(directory=tmp_path, units=(Unit("a", "a.c"), Unit("b", "b.c")))


def test_a_constant_read_wrong_does_not_compile(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = constants.constants
    monkeypatch.setattr(constants, "constants", lambda text: right(text) | {"PROGRAM_TAIL6": 7})
    with pytest.raises(CompileError, match="PROGRAM_TAIL6"):
        small_bundle()


def _python(path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a program in place of Python."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr(children, "_pythons", lambda: (str(path),))


def test_a_compiler_that_crashes_is_an_error(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _python(tmp_path / "python", "echo last words >&2; kill -ABRT $$", monkeypatch)
    with pytest.raises(CompileError, match=r"signal 6\nlast words"):
        small_bundle()


def test_a_missing_bcc_says_what_to_install(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # -S leaves out the distribution's packages, and with them bcc.
    _python(tmp_path / "python", 'exec /usr/bin/python3 -S "$@"', monkeypatch)
    with pytest.raises(CompileError, match="bcc is not installed") as caught:
        small_bundle()
    assert "python3-bpfcc" in caught.value.hint


def test_the_impostor_is_told_from_bcc(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text("")
    body = f'shift; exec env PYTHONPATH={tmp_path} /usr/bin/python3 -S "$@"'
    _python(tmp_path / "python", body, monkeypatch)
    with pytest.raises(CompileError, match="not the BPF Compiler Collection"):
        small_bundle()


def test_the_verifiers_words_are_in_the_error(cache: Path, tmp_path: Path) -> None:
    bundle = _one("int bad(struct __sk_buff *s) { return *(int *)(long)s->data; }", tmp_path / "c")
    with pytest.raises(KernelError, match=r"program bad.*Permission denied") as caught:
        load(bundle.programs["bad"], {})
    assert "invalid" in caught.value.hint


def test_tail_calls_reach_the_family(cache: Path) -> None:
    bundle = small_bundle()
    entries = Sizes(16, 16, 16).max_entries(bundle)
    opened = {name: maps.create(bundle.maps[name], room) for name, room in entries.items()}
    services, counters = opened["services"], opened["counters"]
    assert isinstance(services, maps.ArrayMap)
    assert isinstance(counters, maps.PerCpuArray)
    services.records[0] = (0, 0, 77)
    with Generation.load(bundle, {n: m.fd for n, m in opened.items()}) as generation:
        generation.close_tails()
        result = testrun.run(generation.fds["entry_call"], bytes(60), repeat=3)
    assert result.retval == 77
    assert counters.read_sum().tolist() == [0, 3]
    for one in opened.values():
        one.close()


def test_a_program_of_the_enum_that_does_not_exist(cache: Path, sources: Path) -> None:
    text = (sources / "consts.h").read_text().replace("PROGRAM_TAIL6,", "PROGRAM_TAIL6, PROGRAM_X,")
    (sources / "consts.h").write_text(text)
    bundle = compiler.bundle(directory=sources, units=UNITS)
    with pytest.raises(CompileError, match="names x"):
        Generation.load(bundle, {})


@pytest.mark.parametrize("variant", ["live", "trace"])
def test_the_real_programs_load(
    variant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ebpf", variant])
    assert entry.main() == 0
    listed = capsys.readouterr().out
    for name in ("entry_from_pod", "entry_to_pod", "from_pod4", "to_pod6"):
        assert name in listed


UNPRIVILEGED = """
from ebpf.compile import children, source
units = [unit for unit in source.UNITS if unit.name == "entry"]
(made,) = children.compile_units(units, [source.join(units[0], source.source_dir())])
print(len(made.maps), len(made.programs))
"""


def test_compiling_asks_for_no_privilege() -> None:
    nothing = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    done = subprocess.run(
        [*nothing, sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [int(word) > 1 for word in done.stdout.split()] == [True, True]


def test_where_calls_cannot_be_answered_maps_are_made(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = small_bundle()
    monkeypatch.setattr(calls, "numbers", lambda: None)
    monkeypatch.setenv("LBCTL_CACHE_DIR", str(tmp_path / "another"))
    assert small_bundle() == answered


def test_what_came_with_the_package_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(compiler, "SHIPPED", tmp_path / "compiled")
    shipped = compiler.ship()
    assert len(shipped) == 2
    monkeypatch.setenv("LBCTL_CACHE_DIR", str(tmp_path / "empty"))
    request.getfixturevalue("no_compiler")
    assert [compiler.bundle(name).variant for name in ("live", "trace")] == ["live", "trace"]
    assert not (tmp_path / "empty").exists()
    for path in shipped:
        path.chmod(0o666)
    with pytest.raises(AssertionError, match="compiled"):
        compiler.bundle()


SUBPROGRAMS = """
#include "consts.h"
#include "subprogram.h"
BPF_F_TABLE("array", u32, u64, seen, 1, BPF_F_MMAPABLE);
struct sum { u64 value; u32 step; u32 pad; };
CALLED(add, struct sum, SUBPROGRAM_ADD);
SIZED(add, struct sum)
SUBPROGRAM(add, struct sum)
{
	u32 zero = 0;
	u64 *count = seen.lookup(&zero);

	if (!own || !count)
		return 0;
	__sync_fetch_and_add(count, 1);
	own->value += own->step;
	return *count;
}
PROGRAM(entry_sum)
{
	struct sum sum = {.value = 5, .step = 10};

	call_add(&sum);
	return call_add(&sum) * 100 + sum.value;
}
"""


def test_programs_call_functions_of_their_own(cache: Path, sources: Path) -> None:
    shutil.copy(source.source_dir() / "subprogram.h", sources)
    shutil.copy(source.source_dir() / "unit.h", sources)
    (sources / "consts.h").write_text("enum subprogram { SUBPROGRAM_ADD = 1001 };")
    bundle = _one(SUBPROGRAMS, sources)
    (program,) = bundle.programs.values()
    assert [found.size for found in program.functions] == [16]
    seen = maps.create(bundle.maps["seen"], 1)
    fd = load(program, {"seen": seen.fd})
    assert testrun.run(fd, bytes(64)).retval == 2 * 100 + 25  # of two calls, each 10 on top of 5
    os.close(fd)
    seen.close()
