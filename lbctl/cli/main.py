"""The `lbctl` command: its sub-commands, loaded when asked for, and its errors, told here only."""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from ebpf.errors import InUseError, LbError
from lbctl import interrupts

# Command to what the listing says of it. The module is `lbctl.cli.NAME`, its attribute `command`:
# `lbctl --help` must not import what an agent needs.
COMMANDS = {
    "agent": "Run the agent: keep this node's maps in line with the Kubernetes API.",
    "status": "Show whether an instance is ready, how full its tables are, packets by reason.",
    "service": "List services, or show one with its addresses, backends and counters.",
    "backend": "List the endpoints that services translate to.",
    "flow": "List the connections being translated, or end some of them.",
    "observe": "Show flows opening and ending, refusals and drops, as they happen.",
    "top": "Show which services, endpoints or clients have the most traffic.",
    "ui": "Serve a web page about this node.",
    "trace": "Ask the programs where a packet would go, and why.",
    "explain": "Say which endpoints of a service are used from here, which are not, and why.",
    "drain": "Say what losing a node would do to services and flows.",
    "verify": "Compare what is in the kernel with what the API says now; repair differences.",
    "doctor": "Check what this kernel and machine provide, and say how to fix what is missing.",
    "bundle": "Collect everything support needs about this node in one file, without secrets.",
    "cleanup": "Remove everything that an instance pinned or attached.",
    "lab": "Build a cluster of network namespaces on this machine, to try things on.",
    "demo": "Show real traffic through a small lab while things change, and count what is lost.",
    "bench": "Measure what a service costs on this machine, next to iptables and nftables.",
}

EXIT_CODES = {
    0: "done",
    1: "failed; the message says what and why",
    2: "used wrongly: an unknown command, option or value",
    3: "no such instance, service, node, pod or lab",
    4: "an agent is using the instance",
    5: "a check failed (status --check, doctor, verify, drain: see their --help)",
    interrupts.EXIT_CODE: "interrupted",
}
IN_USE = 4

EPILOG = (
    "\b\nExit codes:\n"
    + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    + "\n\n\b\nStart here:\n"
    "  lbctl doctor                            can lbctl run on this machine?\n"
    "  lbctl demo                              see it work, in network namespaces\n"
    "  lbctl service show default/web          one service, with its backends\n"
    "  lbctl trace 10.0.0.2 10.96.0.1:443/tcp  where would this packet go?"
)


def exit_code(error: LbError) -> int:
    """What the process returns for `error`: its own code, but 4 for every held instance."""
    if isinstance(error, InUseError) and error.exit_code == LbError.exit_code:
        return IN_USE
    return error.exit_code


def _report(error: LbError) -> NoReturn:
    click.echo(f"{click.style('error:', fg='red')} {error.message}", err=True)
    from lbctl import advice

    if hint := advice.on(error):
        click.echo(hint, err=True)
    sys.exit(exit_code(error))


class LazyGroup(click.Group):
    """A group whose commands are imported when they run, and which suggests near names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        with interrupts.importing():
            command = importlib.import_module(f"lbctl.cli.{cmd_name}").command
        assert isinstance(command, click.Command), f"lbctl.cli.{cmd_name}.command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise unknown(ctx, "command", args[0], list(COMMANDS), "`lbctl --help` lists them.")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click's, with every LbError told to the person and turned into its exit code."""
        try:
            return super().main(*args, **kwargs)
        except LbError as error:
            _report(error)

    def invoke(self, ctx: click.Context) -> Any:
        with interrupts.raised():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                click.echo("interrupted", err=True)
                sys.exit(interrupts.EXIT_CODE)


def unknown(
    ctx: click.Context, kind: str, name: str, known: Sequence[str], otherwise: str
) -> click.UsageError:
    """A usage error for `name`, with the nearest of `known`, or else the sentence `otherwise`."""
    near = difflib.get_close_matches(name, known, n=3)
    advice = f"Did you mean {' or '.join(near)}?" if near else otherwise
    return click.UsageError(f"There is no {kind} '{name}'. {advice}", ctx)


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="lbctl", message="%(prog)s %(version)s")
def command() -> None:
    """A Kubernetes service load balancer in the kernel.

    Everything that one agent sets up is an instance. It is pinned in one directory, which --pin-dir
    (or $LBCTL_PIN_DIR) names. Listings take -o table, wide, json or yaml. Data goes to stdout,
    messages to stderr.
    """


def main() -> None:
    """What `lbctl` runs (lbctl/__main__.py)."""
    interrupts.begin()
    command(prog_name="lbctl")
