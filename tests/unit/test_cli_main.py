"""The command line as a whole: what it lists, imports, suggests, and returns."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from ebpf.errors import CompileError, InUseError
from lbctl.cli import main
from lbctl.errors import NotFound, UsageError

# 614 with the libraries of today; their next versions may have a few more.
MOST_MODULES = 650


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main.command, words, prog_name="lbctl")
    return result.exit_code, result.stdout, result.stderr


def test_help_lists_every_command_and_exit_code() -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in main.COMMANDS:
        assert f"\n  {name} " in out
    for number, meaning in main.EXIT_CODES.items():
        assert f"{number:<4} {meaning}" in out


@pytest.mark.parametrize(
    "words",
    [
        "agent --manifests x --node-name n",
        "verify",
        "bundle",
        "lab up",
        "lab down",
        "lab status",
        "lab exec pod1 -- true",
        "demo",
        "bench --quick",
    ],
)
def test_without_root_each_says_so_and_fails(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    code, out, err = run(*words.split())
    assert (code, out) == (1, "")
    assert "needs root" in err
    assert "sudo" in err


@pytest.mark.parametrize("name", sorted(main.COMMANDS))
def test_every_command_loads_and_explains_itself(name: str) -> None:
    code, out, err = run(name, "--help")
    assert code == 0, err
    assert out.startswith(f"Usage: lbctl {name} ")


def test_help_loads_no_command_and_no_library_of_one() -> None:
    script = (
        "import sys\n"
        "from lbctl.cli.main import command\n"
        "command(['--help'], prog_name='lbctl', standalone_mode=False)\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert not loaded & {"numpy", "rich", "pyroute2", "kubernetes", "bcc", "structlog", "yaml"}
    assert not {module for module in loaded if module.startswith("lbctl.inspect")}


def test_an_agent_begins_without_what_it_may_never_need() -> None:
    """Before it lists, interfaces included: pyroute2 and others are for what is asked for or goes
    wrong. Whatever is imported here is waited for at every start."""
    script = (
        "import sys\n"
        "from lbctl.cli.main import command\n"
        "refused = ['agent', '--manifests', 'x', '--kubeconfig', 'x']  # once all is imported\n"
        "try:\n"
        "    command(refused, prog_name='lbctl')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 2\n"
        "import lbctl.sources.kubernetes, lbctl.sources.eventapi\n"
        "from ebpf.kernel import netlink\n"
        "netlink.Watch().close()\n"
        "assert netlink.read_network().links\n"
        "print(*sys.modules, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "lbctl.agent.run" in loaded
    assert not loaded & {"pyroute2", "kubernetes", "bcc", "matplotlib", "scapy"}
    assert not loaded & {"rich", "pygments", "attr", "yaml"}
    assert not {module for module in loaded if module.startswith(("lbctl.lab", "lbctl.bench"))}
    assert len(loaded) < MOST_MODULES, f"{len(loaded)} modules"


def test_the_module_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lbctl", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: lbctl ")


def test_an_unknown_command_suggests_a_near_one() -> None:
    code, _, err = run("servcie", "list")
    assert code == 2
    assert "There is no command 'servcie'. Did you mean service" in err
    code, _, err = run("xyzzy")
    assert code == 2
    assert "lbctl --help" in err


def test_an_unknown_option_is_wrong_use() -> None:
    code, _, err = run("--no-such-option")
    assert code == 2
    assert "--no-such-option" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CompileError("it broke", "mend it"), 1),
        (UsageError("it broke", "mend it"), 2),
        (NotFound("it broke", "mend it"), 3),
        (InUseError("it broke", "mend it"), 4),
        (InUseError("it broke", "mend it", exit_code=7), 7),
    ],
)
def test_errors_become_a_message_a_hint_and_a_code(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr("lbctl.cli.doctor.command", failing)
    assert run("doctor") == (code, "", "error: it broke\nmend it\n")


def test_an_interrupt_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lbctl.cli.doctor.command", interrupted)
    assert run("doctor") == (130, "", "interrupted\n")
