"""Programs on pods' interfaces and on uplinks: which ones those are, and following them."""

import errno
import time
from collections.abc import Collection, Iterable, Iterator
from ipaddress import ip_address

import structlog

from ebpf.errors import KernelError
from ebpf.hooks.tc import Attacher
from ebpf.kernel import netlink
from ebpf.kernel.netlink import IPAddress, Link, Network
from ebpf.programs import Generation
from lbctl.addresses import IPV4, family_of
from lbctl.agent.uplinks import pod_interfaces, uplinks

# Of the veth's host side: what comes in there comes from the pod.
_POD_HOOKS = {"ingress": "entry_from_pod", "egress": "entry_to_pod"}
_UPLINK_HOOKS = {"ingress": "entry_from_net", "egress": "entry_to_net"}
_TUNNEL_HOOKS = {"ingress": "entry_from_tunnel", "egress": "entry_to_tunnel"}
# Between looks at the whole network after addresses or routes changed.
REFRESH_SECONDS = 1.0


class Interfaces:
    """The interfaces of one network namespace, and our programs on those of pods."""

    def __init__(
        self, attacher: Attacher, uplinks: Collection[str], pod_patterns: Collection[str]
    ) -> None:
        self._attacher = attacher
        self._named_uplinks = uplinks
        self._patterns = pod_patterns
        self._generation: Generation | None = None
        self._node_addresses: frozenset[IPAddress] = frozenset()
        self._uplinks: frozenset[int] = frozenset()
        self._attached: dict[int, tuple[str, str]] = {}  # index to name and program at ingress
        self._failed: dict[str, str] = {}
        self._stale: float | None = None  # since when the network may differ from what we know
        self._log = structlog.get_logger()
        self._watch = netlink.Watch()  # before the first look: nothing is missed in between
        self.network: Network = netlink.read_network()

    @property
    def attached(self) -> int:
        """Interfaces with programs."""
        return len(self._attached)

    @property
    def problems(self) -> list[str]:
        """Why interfaces are without programs."""
        return sorted(self._failed.values())

    def were_attached(self) -> bool:
        """Whether an earlier agent left programs in place."""
        return bool(self._attacher.attachments())

    def fileno(self) -> int:
        """Readable when interfaces changed."""
        return self._watch.fileno()

    def set_node_addresses(self, addresses: Iterable[bytes]) -> None:
        """The addresses the Node object names: an interface with one is an uplink, veth or not."""
        found = frozenset(_narrow(a) for a in addresses)
        if found != self._node_addresses:
            self._node_addresses = found
            self._sort_links(thorough=False)

    def set_patterns(self, uplinks: Collection[str], pods: Collection[str]) -> None:
        """Other names of uplinks and of pods' interfaces than so far."""
        if (uplinks, pods) != (self._named_uplinks, self._patterns):
            self._named_uplinks, self._patterns = uplinks, pods
            self._sort_links(thorough=False)

    def attach_all(self, generation: Generation) -> None:
        """Put these programs on all pod interfaces and uplinks, now and from now on."""
        self._generation = generation
        self._sort_links(thorough=True)

    def handle(self) -> None:
        """Take in what the kernel reports; new pods' interfaces get programs at once."""
        began = time.monotonic()
        changes = self._watch.read()
        if changes.lost:
            self._stale = began - REFRESH_SECONDS  # a pod may be waiting
        elif changes.addresses or changes.routes:
            self._stale = self._stale or began
        if changes.gone & self._attached.keys():
            self._forget(changes.gone)
        for link in pod_interfaces(changes.links, self._uplinks, self._patterns):
            if self._attach(link, _POD_HOOKS):
                spent = round((time.monotonic() - began) * 1000, 2)
                self._log.info("programs attached", interface=link.ifname, milliseconds=spent)

    def due(self) -> float | None:
        """When `step` has something to do, on the monotonic clock."""
        return None if self._stale is None else self._stale + REFRESH_SECONDS

    def step(self, now: float) -> None:
        """Addresses or routes changed a moment ago, or something may have been missed."""
        self.refresh()

    def refresh(self, thorough: bool = False) -> None:
        """Look at the whole network again, `thorough` also at what runs on each interface."""
        self._stale = None
        self.network = netlink.read_network()
        self._sort_links(thorough)

    def close(self) -> None:
        """Stop following; programs stay."""
        self._watch.close()

    def _sort_links(self, thorough: bool) -> None:
        """Decide anew what each interface is, and make it so."""
        network = self.network
        self._uplinks = uplinks(
            network.links,
            network.default_routes,
            network.addresses,
            self._node_addresses,
            self._named_uplinks,
        )
        if self._generation is None:
            return
        wanted: dict[int, str] = {}
        for link, hooks in self._wanted_hooks(network):
            wanted[link.ifindex] = hooks["ingress"]
            if thorough or self._attached.get(link.ifindex) != (link.ifname, hooks["ingress"]):
                self._attach(link, hooks)
        if thorough or self._attached.keys() - wanted.keys():
            self._detach_others(wanted)
        self._forget(self._attached.keys() - wanted.keys())

    def _wanted_hooks(self, network: Network) -> Iterator[tuple[Link, dict[str, str]]]:
        for link in network.links:
            if link.ifindex in self._uplinks:
                yield link, _TUNNEL_HOOKS if link.bare else _UPLINK_HOOKS
        for link in pod_interfaces(network.links, self._uplinks, self._patterns):
            yield link, _POD_HOOKS

    def _detach_others(self, wanted: Collection[int]) -> None:
        """Take programs off interfaces that are neither a pod's nor an uplink, any more."""
        for item in self._attacher.attachments():
            if not item.ifindex or item.ifindex in wanted:
                continue
            try:
                self._attacher.detach(item.ifname, item.direction)
            except KernelError as error:
                self._log.warning("cannot detach", interface=item.ifname, error=error.message)
            else:
                self._log.info("programs removed, not our interface", interface=item.ifname)

    def _attach(self, link: Link, hooks: dict[str, str]) -> bool:
        """Returns whether programs were attached that were not there."""
        if self._generation is None:
            return False
        new = False
        try:
            for direction, program in hooks.items():
                fd = self._generation.fds[program]
                done = self._attacher.attach(link.ifname, link.ifindex, direction, fd)
                new |= done == "attached"
        except KernelError as error:
            if error.errno != errno.ENODEV:
                self._failed[link.ifname] = f"no programs on {link.ifname}: {error.message}"
                self._log.error("cannot attach", interface=link.ifname, error=error.message)
            return False
        self._failed.pop(link.ifname, None)
        self._attached[link.ifindex] = (link.ifname, hooks["ingress"])
        return new

    def _forget(self, gone: Iterable[int]) -> None:
        """These interfaces are gone; so are their programs, but for the pins."""
        gone = list(gone)
        for index in gone:
            name, _ = self._attached.pop(index, ("", ""))
            self._failed.pop(name, None)
        if gone:
            try:
                self._attacher.prune()
            except KernelError as error:
                self._log.warning("cannot tidy the pins of links", error=error.message)


def _narrow(address: bytes) -> IPAddress:
    return ip_address(address[12:] if family_of(address) == IPV4 else address)
