"""`lbctl cleanup`: removes an instance from the kernel, or what kube-proxy left behind."""

from __future__ import annotations

from pathlib import Path

import click

from ebpf.errors import MissingFeature
from lbctl import status
from lbctl.cli import options
from lbctl.errors import UsageError
from lbctl.host import leftovers, removal
from lbctl.host import settings as host


@click.command()
@options.yes
@click.option(
    "--force",
    is_flag=True,
    help="Do it even while an agent is running; that agent will stop working.",
)
@click.option(
    "--kube-proxy",
    "kube_proxy",
    is_flag=True,
    help="Remove kube-proxy's chains and tables from this network namespace instead.",
)
@options.pin_dir
def command(yes: bool, force: bool, kube_proxy: bool, pin_dir: Path) -> None:
    """Remove everything an instance pinned or attached, and nothing else.

    Detaches the programs and removes maps and pins; connections through services end. It is refused
    while an agent runs. Filters of clsact (on kernels before 6.6) can only be removed from the
    network namespace they are in: run it there.

    With --kube-proxy, the instance stays, and what kube-proxy left behind is removed: its chains in
    every variant of iptables with the rules that lead to them, and its nftables tables. Policies,
    sysctls and devices are only listed.
    """
    if kube_proxy:
        if force:
            raise UsageError("--force is about the instance, which --kube-proxy does not touch")
        _kube_proxy(yes, pin_dir)
        return
    found = removal.survey(pin_dir)
    with removal.exclusive(pin_dir, force=force):
        click.echo(f"{pin_dir}: {found}", err=True)
        if not yes:
            click.confirm("Remove all of it?", abort=True, err=True)
        removal.remove(pin_dir)
    click.echo("removed", err=True)


def _kube_proxy(yes: bool, pin_dir: Path) -> None:
    """What would be done goes to stdout, what else is to know to stderr."""
    shown = leftovers.saved()
    found = leftovers.find(shown)
    if not found.asked:
        raise MissingFeature(
            f"no packet filter rules can be listed here (tried {', '.join(shown)})",
            "Run as root, in the node's network namespace, with iptables and nft installed.",
        )
    if unasked := [name for name, text in shown.items() if text is None]:
        click.echo(f"not looked at: {', '.join(unasked)} (not installed, or failed)", err=True)
    for line in found.commands():
        click.echo(line)
    for sentence in (*found.kept(), *_named_only(shown)):
        click.echo(sentence, err=True)
    if not found:
        click.echo(f"kube-proxy left no rules here ({', '.join(found.asked)})", err=True)
        return
    for sentence in _warnings(pin_dir):
        click.echo(f"warning: {sentence}", err=True)
    if not yes:
        click.confirm("Do all of that?", abort=True, err=True)
    leftovers.remove(found)
    click.echo("removed", err=True)


def _named_only(shown: dict[str, str | None]) -> list[str]:
    answers = (host.forward_policy(shown), host.ipvs_device(), host.kube_proxy_settings())
    return [f"left alone: {a.detail}\n  {a.remedy}" for a in answers if a.ok is False]


def _warnings(pin_dir: Path) -> list[str]:
    found = []
    if pid := leftovers.process():
        found.append(f"kube-proxy runs (process {pid}) and would write its rules again")
    if not status.running_agent(pin_dir):
        found.append(
            f"no agent of lbctl holds {pin_dir}: without these rules services may not work here"
        )
    else:
        found.append(
            "once the agent sees that the rules are gone, it resets TCP connections to services "
            "that it did not make; `lbctl agent --takeover on` lets them be"
        )
    return found
