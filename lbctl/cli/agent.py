"""`lbctl agent`: keeps a node's service translation equal to what the API says."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lbctl import interrupts
from lbctl.cli import options
from lbctl.cli.root import require_root

if TYPE_CHECKING:
    from ebpf.maps.sizes import Sizes
    from lbctl.config.settings import Settings
    from lbctl.config.settle import Said
    from lbctl.config.watch import FollowedFile
    from lbctl.instruments import Instruments
    from lbctl.model.updates import Source
    from lbctl.sources.eventapi import EventApi

EPILOG = """\b
Examples:
  lbctl agent                                    in a pod, with its service account and $NODE_NAME
  lbctl agent --kubeconfig ~/.kube/config --node-name node1
  lbctl agent --manifests ./manifests --node-name node1

It serves the network namespace it runs in. SIGTERM and SIGINT end it; the data path keeps running
as it is until `lbctl cleanup` removes it. The agent reserves ports 61000-65535 in
net.ipv4.ip_local_reserved_ports for connections whose source port it has to change.

\b
Exit codes:
  0  ended by a signal
  1  could not start or continue; the message says why
  2  used wrongly: an unknown option or value
  4  another agent uses the pin directory; the message says which process
"""

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@click.command(epilog=EPILOG)
@options.pin_dir
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read settings from this file: a KubeProxyConfiguration, an AgentConfiguration or both. "
    "Changes are picked up. Options override it.",
)
@options.of_settings
def command(pin_dir: Path, config: Path | None, **given: Any) -> None:
    """Run the agent: keep this node's maps in line with the Kubernetes API."""
    # Importing is quicker without; the agent turns it on later, see lbctl/agent/memory.py.
    gc.disable()
    click.get_current_context().call_on_close(gc.enable)
    with interrupts.importing():
        _import_structlog()
        from lbctl.agent.run import Agent, Options
    from lbctl.config import settle
    from lbctl.errors import UsageError
    from lbctl.instruments import Instruments

    if given["manifests"] and (given["kubeconfig"] or given["api_server"]):
        raise UsageError(
            "--manifests cannot be combined with --kubeconfig or --api-server",
            "The objects come either from files or from an API server.",
        )
    require_root("the agent", "loads programs into the kernel")
    found, followed = _settings(settle.from_command_line(**given), config)
    name = found.node_name or os.uname().nodename.strip().lower()
    instruments = Instruments()
    agent = Agent(
        Options(
            node_name=name,
            pin_dir=pin_dir,
            source_kind="manifests" if found.manifests else "kubernetes",
            settings=found,
            sizes=_sizes(found.services, found.endpoints, found.flows),
            cgroup=found.cgroup,
        ),
        _source(name, found, instruments),
        followed,
        instruments,
        _events(name, found, instruments),
    )
    agent.run()


def _import_structlog() -> None:
    """Without rich, which it would import only to draw tracebacks, in a tenth of a start's time.
    Ours are text before a renderer sees them."""
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # how Python is told to find none
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]


def _settings(flags: Said, config: Path | None) -> tuple[Settings, FollowedFile | None]:
    """What holds from the start, and who follows the file. Sets up the log on the way."""
    import structlog

    from lbctl.config import file as configfile
    from lbctl.config import settle
    from lbctl.config.watch import FollowedFile

    file = configfile.read(config) if config else configfile.ConfigFile()
    found = settle.settle(flags, file)
    log_to_stderr(found.log_format, found.verbose)
    ignored = settle.ignored(file)
    if ignored:
        structlog.get_logger().info("settings without effect here", fields=ignored)
    return found, FollowedFile(config, flags, found, file) if config else None


def _source(node_name: str, found: Settings, instruments: Instruments) -> Source:
    """Imported here: the API client is 21 MB that an agent of manifests can do without."""
    if found.manifests is not None:
        from lbctl.sources.manifests import ManifestSource

        return ManifestSource(found.manifests, node_name)
    from lbctl.sources.kubernetes import KubernetesSource

    kubeconfig = found.kubeconfig or _usable(found.file_kubeconfig)
    return KubernetesSource(
        node_name, kubeconfig=kubeconfig, api_server=found.api_server, instruments=instruments
    )


def _events(node_name: str, found: Settings, instruments: Instruments) -> EventApi | None:
    """Who takes Events, with connections of its own: nothing that it does delays a list."""
    if found.events == "off" or found.manifests is not None:
        return None
    from lbctl.sources.client import ApiClient
    from lbctl.sources.eventapi import EventApi

    kubeconfig = found.kubeconfig or _usable(found.file_kubeconfig)
    return EventApi(ApiClient(kubeconfig, found.api_server, instruments), node_name)


def _usable(kubeconfig: Path | None) -> Path | None:
    """The file's clientConnection.kubeconfig. In a pod of ours it names a file of kube-proxy's pod,
    and the service account takes its place."""
    if kubeconfig is None or kubeconfig.exists() or not _SERVICE_ACCOUNT.exists():
        return kubeconfig
    import structlog

    structlog.get_logger().info(
        "clientConnection.kubeconfig does not exist; using the service account",
        path=str(kubeconfig),
    )
    return None


def _sizes(services: int | None, endpoints: int | None, flows: int | None) -> Sizes | None:
    """None: what exists keeps its size, and what is new gets one that suits the machine."""
    if services is None and endpoints is None and flows is None:
        return None
    from ebpf.maps.sizes import Sizes, memory_of_machine

    usual = Sizes.automatic(memory_of_machine())
    return Sizes(services or usual.services, endpoints or usual.endpoints, flows or usual.flows)


def _visible(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """What objects say (a zone, a name) moves no cursor and colours nothing where a log is read."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
    return event


def log_to_stderr(log_format: str, verbose: bool) -> None:
    """One line per event on stderr: for people (text) or machines (json)."""
    import structlog

    renderer = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=32)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if log_format == "json" else [_visible]),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
