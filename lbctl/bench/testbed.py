"""The namespaces of a run: per peer a client and a node of its own, and one server behind them all.

    client-PEER ── node-PEER ── server

The client is a pod of its node: its veth's other end is the interface `pod0`. The server answers on
every address of the endpoints' range. Everything has the run's name, by which it is removed again,
also after a kill.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from ebpf.hooks.cgroup import root as cgroup_root
from ebpf.kernel import bpffs
from lbctl import status
from lbctl.bench.dataset import ENDPOINT_CIDR
from lbctl.bench.records import PEERS
from lbctl.errors import LbError
from lbctl.lab import agents, cgroup, namespace, network
from lbctl.lab.topology import check_name

RUN = Path("/run/lbctl/bench")
PINS = Path("/sys/fs/bpf/lbctl-bench")
POD_INTERFACE, UPLINK = "pod0", "up0"

_SETTINGS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv6/conf/all/disable_ipv6": "1",  # its own traffic would only disturb
    "net/core/somaxconn": "4096",
}
# Joins the cgroups, enters the namespace, and becomes the program.
_LAUNCH = (
    'for group in $1; do echo $$ >"$group/cgroup.procs" || exit 70; done; '
    'net=$2; shift 2; exec nsenter --net="$net" -- "$@"'
)


class Site(msgspec.Struct, frozen=True):
    """One peer's place: names of its namespaces, and the node's address towards the server."""

    peer: str
    number: int
    client: str
    node: str

    @property
    def client_address(self) -> str:
        return f"10.64.{self.number}.2"

    @property
    def node_address(self) -> str:
        return f"10.65.{self.number}.1"

    @property
    def server_interface(self) -> str:
        """Of the server, towards the node."""
        return f"node{self.number}"


class Testbed:
    """All sites of a run called `name`. A context manager: nothing is left at the end of it."""

    def __init__(self, name: str, peers: Sequence[str]) -> None:
        self.name = check_name(name)
        self.run = RUN / self.name
        self.server = f"lbbench-{self.name}-server"
        self.sites = {
            peer: Site(
                peer,
                number,
                f"lbbench-{self.name}-client-{peer}",
                f"lbbench-{self.name}-node-{peer}",
            )
            for number, peer in enumerate(peers, 1)
        }
        self._cgroup = cgroup_root() / f"lbctl-bench-{self.name}"
        self._memory = _memory_controller()
        self._lock: int | None = None

    def __enter__(self) -> Testbed:
        self._take_name()
        try:
            self.remove()  # what a killed run has left
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as parts:
            parts.callback(self._release_name)
            parts.callback(self.remove)

    # Where things are

    def directory(self, peer: str) -> Path:
        """A directory for a peer's files; made if need be."""
        path = self.run / peer
        path.mkdir(parents=True, exist_ok=True)
        return path

    def pin_dir(self, peer: str) -> Path:
        return PINS / self.name / peer

    def pods_cgroup(self, peer: str) -> Path:
        """The cgroup (version 2) of a peer's client, which socket programs may be attached to."""
        return self._cgroup / peer / "pods"

    # Programs

    def command(self, peer: str, argv: Sequence[str], place: str | None = None) -> list[str]:
        """The command line that runs `argv` on the peer's node, or in the namespace `place`.

        What runs on a node has its memory counted as the peer's, also the kernel's for it.
        """
        net = str(namespace.path_of(place or self.sites[peer].node))
        client = place == self.sites[peer].client
        groups = " ".join(map(str, [self.pods_cgroup(peer)] if client else self._groups(peer)))
        return ["sh", "-c", _LAUNCH, "sh", groups, net, *argv]

    def run_on(
        self, peer: str, argv: Sequence[str], stdin: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the peer's node. subprocess.TimeoutExpired after `timeout` seconds."""
        return self.run_in(self.sites[peer].node, peer, argv, stdin, timeout)

    def run_in(
        self, place: str, peer: str, argv: Sequence[str], stdin: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace `place`, as one of the peer's."""
        return subprocess.run(
            self.command(peer, argv, place),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=agents.environment(),
            check=False,
        )

    def kernel_bytes(self, peer: str) -> int | None:
        """Kernel memory charged to the peer's programs; None where nothing counts it."""
        if self._memory is not None:  # version 1
            file = self._memory / f"lbctl-bench-{self.name}" / peer / "memory.kmem.usage_in_bytes"
            return int(file.read_text()) if file.exists() else None
        statistics = self._cgroup / peer / "memory.stat"
        if statistics.exists():
            for line in statistics.read_text().splitlines():
                if line.startswith("kernel "):
                    return int(line.split()[1])
        return None

    def _groups(self, peer: str) -> list[Path]:
        found = [self._cgroup / peer]
        if self._memory is not None:
            found.append(self._memory / f"lbctl-bench-{self.name}" / peer)
        return found

    def answer_on(self, addresses: Sequence[str]) -> None:
        """Let the server have these addresses too."""
        _configure(self.server, [f"route replace local {address} dev lo" for address in addresses])

    # Life

    def remove(self) -> None:
        """Remove everything of this name. Each part is tried even if another fails."""
        with ExitStack() as parts:  # in reverse order
            parts.callback(_remove_tree, self.run)
            parts.callback(self._remove_pins)
            parts.callback(network.remove, self._namespaces())
            if self._memory is not None:
                parts.callback(_remove_groups, self._memory / f"lbctl-bench-{self.name}")
            parts.callback(cgroup.remove, self._cgroup)  # first: ends the processes

    def _namespaces(self) -> list[str]:
        """Those that exist, also of peers this run does not have."""
        peers = "|".join(PEERS)
        ours = re.compile(rf"lbbench-{re.escape(self.name)}-(server|(client|node)-({peers}))")
        return [name for name in namespace.existing() if ours.fullmatch(name)]

    def _remove_pins(self) -> None:
        pins = PINS / self.name
        for pin_dir in pins.glob("*"):
            status.remove(pin_dir)
        _remove_tree(pins)
        _remove_if_empty(PINS)

    def _take_name(self) -> None:
        """The lock, held while this process lives, tells a running run from a killed one's rest."""
        RUN.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(RUN / f"{self.name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise LbError(
                f"a benchmark called {self.name!r} is running",
                "Wait for its end: two at once would measure each other. (--name runs beside it.)",
            ) from None

    def _release_name(self) -> None:
        if self._lock is not None:
            (RUN / f"{self.name}.lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None
            _remove_if_empty(RUN)

    def _build(self) -> None:
        self.run.mkdir(parents=True)
        bpffs.mount()
        sites = list(self.sites.values())
        for site in sites:
            for group in self._groups(site.peer):
                group.mkdir(parents=True)
            self.pods_cgroup(site.peer).mkdir()
        names = [self.server, *(name for site in sites for name in (site.client, site.node))]
        namespace.ip_batch([f"netns add {name}" for name in names])
        for name in names:
            namespace.run_in(name, _settle)
        _configure(self.server, ["link set lo up", f"route add local {ENDPOINT_CIDR} dev lo"])
        for site in sites:
            self._build_site(site)

    def _build_site(self, site: Site) -> None:
        number, far = site.number, site.server_interface
        _configure(
            site.node,
            [
                "link set lo up",
                f"link add {POD_INTERFACE} type veth peer name eth0 netns {site.client}",
                f"link add {UPLINK} type veth peer name {far} netns {self.server}",
                f"address add 10.64.{number}.1/24 dev {POD_INTERFACE}",
                f"address add {site.node_address}/24 dev {UPLINK}",
                f"link set {POD_INTERFACE} up",
                f"link set {UPLINK} up",
                f"route add default via 10.65.{number}.2",
            ],
        )
        _configure(
            site.client,
            [
                "link set lo up",
                f"address add {site.client_address}/24 dev eth0",
                "link set eth0 up",
                f"route add default via 10.64.{number}.1",
            ],
        )
        _configure(
            self.server,
            [
                f"address add 10.65.{number}.2/24 dev {far}",
                f"link set {far} up",
                f"route add 10.64.{number}.0/24 via {site.node_address}",
            ],
        )


def _settle() -> None:
    for setting, value in _SETTINGS.items():
        path = Path("/proc/sys", setting)
        if path.exists():  # a kernel may have no IPv6
            path.write_text(value)


def _configure(name: str, commands: list[str]) -> None:
    namespace.run_in(name, lambda: namespace.ip_batch(commands))


def _memory_controller() -> Path | None:
    """Where version 1 of the memory controller is mounted, if it is in use."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, directory, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(directory)
    return None


def _remove_groups(root: Path) -> None:
    if root.is_dir():
        for path in (*root.glob("*/"), root):
            path.rmdir()


def _remove_if_empty(directory: Path) -> None:
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


def _remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
