"""`lbctl agent`: keeps a node's service translation equal to what the API says."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lbctl.cli import options

if TYPE_CHECKING:
    from ebpf.maps.sizes import Sizes
    from lbctl.config.settings import Flags, Settings
    from lbctl.config.watch import Watch
    from lbctl.sources.store import Source

EPILOG = """\b
Examples:
  lbctl agent                                    in a pod: service account, $NODE_NAME
  lbctl agent --kubeconfig ~/.kube/config --node-name node1
  lbctl agent --manifests ./manifests --node-name node1

It serves the network namespace it runs in. SIGTERM and SIGINT end it, and leave the data path as it
is; `lbctl cleanup` alone removes that. It reserves ports 61000-65535 in
net.ipv4.ip_local_reserved_ports for connections whose source port it has to change.

\b
Exit codes:
  0  ended by a signal
  1  could not start or go on; the message says why
  2  used wrongly
  4  another agent holds the pin directory; the message says which process
"""

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@click.command(epilog=EPILOG)
@click.option(
    "--manifests",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Serve the objects of a YAML or JSON file, or of a directory of them, and follow changes.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Serve the cluster this file names. Without this and --manifests: the pod's own cluster.",
)
@click.option(
    "--node-name",
    envvar="NODE_NAME",
    show_envvar=True,
    metavar="NAME",
    help="Name of this node's object.  [default: of --config, else the host's name]",
)
@click.option(
    "--api-server",
    metavar="URL",
    help="Address of the API server, so that reaching it does not depend on the service it is.",
)
@options.pin_dir
@click.option(
    "--cgroup",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Serve sockets of the processes in this cgroup and below.  [default: all]",
)
@click.option(
    "--socket-lb",
    type=click.Choice(("off", "host", "all")),
    help="Whose sockets are told a backend when they connect: nobody's, those of the node's own "
    "network namespace, pods' too.  [default: host]",
)
@click.option(
    "--uplink",
    "uplinks",
    multiple=True,
    metavar="PATTERN",
    help="Interface to other machines; repeatable.  [default: by routes and node addresses]",
)
@click.option(
    "--pod-interface",
    "pod_interfaces",
    multiple=True,
    metavar="PATTERN",
    help="Interface of a pod; repeatable.  [default: veths whose peer is in another namespace]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A KubeProxyConfiguration, an AgentConfiguration or both, followed while it changes. "
    "Options win over it.",
)
@click.option(
    "--healthz-bind-address",
    metavar="ADDRESS:PORT",
    help="Where to answer /healthz and /livez; [::] means both families, off none.  "
    "[default: of --config, else 0.0.0.0:10256]",
)
@click.option(
    "--service-cidr",
    "service_cidrs",
    multiple=True,
    metavar="CIDR",
    help="Range of ClusterIPs, up to 4 per family; what no service has in it is dropped.",
)
@click.option(
    "--cluster-cidr",
    "cluster_cidrs",
    multiple=True,
    metavar="CIDR",
    help="Range of pods' addresses; repeatable.",
)
@click.option("--services", type=click.IntRange(16), metavar="N", help="Room for service ports.")
@click.option("--endpoints", type=click.IntRange(16), metavar="N", help="Room for endpoints.")
@click.option("--flows", type=click.IntRange(128), metavar="N", help="Room for flows per family.")
@click.option(
    "--takeover",
    type=click.Choice(("auto", "on", "off")),
    help="Leave TCP connections alone that kube-proxy may own: while its rules are there, always, "
    "never.  [default: auto]",
)
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    help="How to write the log, on stderr.  [default: text]",
)
@click.option("--verbose", "-v", is_flag=True, help="Log every change.")
def command(
    manifests: Path | None,
    kubeconfig: Path | None,
    node_name: str | None,
    api_server: str | None,
    pin_dir: Path,
    cgroup: Path | None,
    socket_lb: str | None,
    uplinks: tuple[str, ...],
    pod_interfaces: tuple[str, ...],
    config: Path | None,
    healthz_bind_address: str | None,
    service_cidrs: tuple[str, ...],
    cluster_cidrs: tuple[str, ...],
    services: int | None,
    endpoints: int | None,
    flows: int | None,
    takeover: str | None,
    log_format: str | None,
    verbose: bool,
) -> None:
    """Keep this node's service translation equal to what the API says."""
    from lbctl.agent.run import Agent, Options
    from lbctl.errors import UsageError

    if manifests and (kubeconfig or api_server):
        raise UsageError("--manifests excludes --kubeconfig and --api-server")
    if os.geteuid() != 0:
        raise UsageError(
            "the agent needs root: it loads programs into the kernel", hint="Run it with sudo."
        )
    from lbctl.config.settings import Flags

    flags = Flags(
        node_name=node_name,
        manifests=manifests,
        kubeconfig=kubeconfig,
        api_server=api_server,
        uplinks=uplinks,
        pod_interfaces=pod_interfaces,
        service_cidrs=service_cidrs,
        cluster_cidrs=cluster_cidrs,
        healthz_bind_address=healthz_bind_address,
        services=services,
        endpoints=endpoints,
        flows=flows,
        takeover=takeover,
        socket_lb=socket_lb,
        log_format=log_format,
    )
    found, watch = _settings(flags, config, verbose)
    name = found.node_name or os.uname().nodename.lower()
    agent = Agent(
        Options(
            node_name=name,
            pin_dir=pin_dir,
            source_kind="manifests" if manifests else "kubernetes",
            settings=found,
            sizes=_sizes(found.services, found.endpoints, found.flows),
            cgroup=cgroup,
        ),
        _source(name, manifests, found),
        watch,
    )
    agent.run()


def _settings(flags: Flags, config: Path | None, verbose: bool) -> tuple[Settings, Watch | None]:
    """What holds from the start, and who follows the file. Sets up the log on the way."""
    import structlog

    from lbctl.config import file as configfile
    from lbctl.config import settings
    from lbctl.config.watch import Watch

    file = configfile.read(config) if config else configfile.ConfigFile()
    found = settings.settle(flags, file)
    log_to_stderr(found.log_format, verbose)
    ignored = settings.ignored(file)
    if ignored:
        structlog.get_logger().info("settings that mean nothing here", fields=ignored)
    return found, Watch(config, flags, found, file) if config else None


def _source(node_name: str, manifests: Path | None, found: Settings) -> Source:
    """Imported here: the API client is 21 MB that an agent of manifests can do without."""
    if manifests is not None:
        from lbctl.sources.manifests import ManifestSource

        return ManifestSource(manifests, node_name)
    from lbctl.sources.kubernetes import KubernetesSource

    kubeconfig = found.kubeconfig or _usable(found.file_kubeconfig)
    return KubernetesSource(node_name, kubeconfig=kubeconfig, api_server=found.api_server)


def _usable(kubeconfig: Path | None) -> Path | None:
    """The file's clientConnection.kubeconfig. In a pod of ours it names a file of kube-proxy's pod,
    and the service account takes its place."""
    if kubeconfig is None or kubeconfig.exists() or not _SERVICE_ACCOUNT.exists():
        return kubeconfig
    import structlog

    structlog.get_logger().info(
        "clientConnection.kubeconfig is not there; going by the service account",
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
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
