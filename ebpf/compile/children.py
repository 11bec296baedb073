"""Runs the compiler: a child for each unit, which alone has LLVM in its memory."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ebpf import calls
from ebpf.compile import headers
from ebpf.compile.headers import INSTALL, Headers
from ebpf.compile.linker import Piece
from ebpf.compile.source import Unit
from ebpf.errors import CompileError
from ebpf.layouts import MapSpec

CHILD = Path(__file__).with_name("child.py")
_TIMEOUT_SECONDS = 120
_MOST_AT_ONCE = 4  # of some 120 MB each; the largest unit takes a third of all the time
_FLAGS = (
    # C lets a function go undeclared, and one that nothing calls would pass with such a call.
    "-Werror=implicit-function-declaration",
    # bcc has clang optimise, and describe what it makes for a debugger, and then optimises again
    # itself: the first two take half of the time, for nothing that is kept.
    "-g0",
    "-Xclang",
    "-disable-llvm-passes",
)


class _Request(msgspec.Struct, frozen=True):
    """What the child reads. `bpf` and `seccomp` are numbers of system calls, 0 if not known."""

    text: str
    flags: list[str]
    tree: str
    bpf: int
    seccomp: int


class Answer(msgspec.Struct):
    """What the child writes; bytes travel as base64."""

    error: str = ""
    detail: str = ""
    programs: tuple[Piece, ...] = ()
    maps: tuple[MapSpec, ...] = ()


def compile_units(units: Sequence[Unit], texts: Sequence[str]) -> list[Answer]:
    """As many at once as there are CPUs. Raises CompileError with the compiler's messages."""
    workers = min(len(os.sched_getaffinity(0)), _MOST_AT_ONCE)
    with headers.prepared() as found, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(compile_unit, units, texts, itertools.repeat(found)))


_PROBE = """
#include <uapi/linux/bpf.h>
#include <linux/types.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/icmpv6.h>
#include <linux/tcp.h>
BPF_F_TABLE("array", u32, u64, probe, 1, 0);
int probe_program(struct __sk_buff *skb) { u32 zero = 0; return probe.lookup(&zero) != 0; }
"""


def probe() -> None:
    """Compiles a few lines, past the cache: raises CompileError if bcc or headers are missing."""
    compile_units([Unit("probe", "probe.c")], [_PROBE])


def compile_unit(unit: Unit, text: str, found: Headers) -> Answer:
    """One of these. The distribution's Python first, since that is where bcc lives."""
    flags = [*found.flags, *_FLAGS, *(f"-D{name}={value}" for name, value in unit.defines)]
    known = calls.numbers()
    request = msgspec.json.encode(
        _Request(text, flags, found.tree, known.bpf if known else 0, known.seccomp if known else 0)
    )
    answer, messages = Answer("no-bcc", "no Python to run"), ""
    for python in _pythons():
        if not os.access(python, os.X_OK):
            continue
        answer, messages = _run_child(python, unit, request)
        if answer.error not in ("no-bcc", "impostor"):
            break
    if answer.error:
        raise _refusal(unit, answer, messages)
    return answer


def _pythons() -> tuple[str, ...]:
    return tuple(dict.fromkeys(("/usr/bin/python3", sys.executable)))


def _run_child(python: str, unit: Unit, request: bytes) -> tuple[Answer, str]:
    try:
        done = subprocess.run(
            [python, "-I", str(CHILD)],
            input=request,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(
            f"compiling {unit.file} ({unit.name}) took more than {_TIMEOUT_SECONDS} s",
            "The machine may be short of memory; LLVM needs about 150 MB.",
        ) from error
    messages = done.stderr.decode(errors="replace")
    if done.returncode > 0 and "error:" in messages:
        # How LLVM refuses what clang let pass, such as too large a stack: it ends the process.
        return Answer("compile"), messages
    if done.returncode:
        raise CompileError(
            f"the compiler died on {unit.file} ({unit.name}), {_death(done.returncode)}\n"
            + _last_lines(messages, 20),
            "A signal is a fault in LLVM or too little memory; otherwise the last lines say why.",
        )
    try:
        return msgspec.json.decode(done.stdout, type=Answer), messages
    except msgspec.DecodeError as error:
        raise CompileError(
            f"the compiler's answer about {unit.file} is unreadable: {error}",
            "This is a fault of ebpf/compile/child.py.",
        ) from error


def _death(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"


def _last_lines(text: str, count: int) -> str:
    return "\n".join(text.strip().splitlines()[-count:])


_REFUSALS = {
    "no-bcc": ("bcc is not installed for /usr/bin/python3 ({detail})", INSTALL),
    "impostor": (
        "the module bcc at {detail} is not the BPF Compiler Collection",
        "The package of that name on PyPI is unrelated: remove it. " + INSTALL,
    ),
    "layout": ("a record has no layout that Python can use: {detail}", ""),
    "call": (
        "program {detail} contains a call that bcc cannot make",
        "Mark helpers `static __always_inline`; maps are only usable in files of bpf_src.",
    ),
    "map": ("program {detail} refers to a map that is not in its unit", ""),
    "global": (
        "program {detail} uses a global variable",
        "bcc has none: use a constant, a map, or the stack.",
    ),
}


def _refusal(unit: Unit, answer: Answer, messages: str) -> CompileError:
    if answer.error in _REFUSALS:
        message, hint = _REFUSALS[answer.error]
        return CompileError(
            f"{unit.file} ({unit.name}): " + message.format_map({"detail": answer.detail}), hint
        )
    hint = "The lines above name file and line."
    if "could not open bpf map" in messages or "Operation not permitted" in messages:
        hint = "bcc creates small maps as it compiles: this needs root, or CAP_BPF."
    elif "file not found" in messages:
        hint = "A header is missing. " + INSTALL
    text = messages.strip() or answer.detail
    return CompileError(f"{unit.file} ({unit.name}) does not compile:\n{text}", hint)
