"""Ctrl-C while a command is still being imported, and later."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lbctl import interrupts
from tests.support.interruptible import interruptible

ROOT = Path(__file__).parents[2]
# Stands for a module that takes long to import.
SLOW = "import os, time\nos.write(1, b'here\\n')\ntime.sleep(60)\n"


def interrupted(tmp_path: Path, words: list[str], slow: str) -> tuple[int, str]:
    """What Python returns, and says, if it is interrupted as it imports the module `slow`."""
    (tmp_path / f"{slow}.py").write_text(SLOW)
    with subprocess.Popen(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "here\n"
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=60)
        finally:
            child.kill()
    return child.returncode, said


def script(*lines: str) -> list[str]:
    return ["-c", "\n".join(("from lbctl import interrupts", *lines))]


def test_a_command_that_is_being_imported_ends_without_a_word(tmp_path: Path) -> None:
    assert interrupted(tmp_path, ["-m", "lbctl", "--help"], "click") == (130, "")


@pytest.mark.parametrize("inner", ["importing", "raised"])
def test_what_runs_is_told_but_not_while_it_imports(tmp_path: Path, inner: str) -> None:
    words = script(
        "interrupts.begin()",
        "with interrupts.raised():",
        "    try:",
        f"        with interrupts.{inner}():",
        "            import slow",
        "    except KeyboardInterrupt:",
        "        raise SystemExit('caught')",
    )
    said = {"importing": (130, ""), "raised": (1, "caught\n")}
    assert interrupted(tmp_path, words, "slow") == said[inner]


def test_it_ends_at_once_again_behind_what_runs(tmp_path: Path) -> None:
    words = script(
        "interrupts.begin()",
        "with interrupts.raised(), interrupts.importing():",
        "    pass",
        "import slow",
    )
    assert interrupted(tmp_path, words, "slow") == (130, "")


def test_without_begin_nothing_is_another() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts.raised(), interrupts.importing():
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_shell_has_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.begin()
        with interrupts.raised(), interrupts.importing():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
