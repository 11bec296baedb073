"""A node's own maps, asked as they are."""

from __future__ import annotations

import contextlib

import numpy as np

from ebpf.instance import Instance
from ebpf.layouts import Bundle
from lbctl.addresses import FAMILIES, family_of
from lbctl.trace import programs
from lbctl.trace.flows import Arrival, Flow
from lbctl.trace.tracednode import TracedNode


class LiveNode(TracedNode):
    """A node's own maps. Takes `instance` over; nothing in it changes.

    Raises LayoutError if its maps are of another version of lbctl.
    """

    def __init__(self, instance: Instance, bundle: Bundle) -> None:
        self._instance = instance
        with contextlib.ExitStack() as undo:
            undo.callback(instance.close)
            instance.require(bundle)
            fds = {name: instance.map(name).fd for name in programs.maps_of(bundle)}
            super().__init__(programs.load(bundle, fds), instance, bundle)
            undo.pop_all()

    def origin(self, flow: Flow) -> Arrival:
        """By the addresses and ranges that the node's own maps hold."""
        config = self._instance.config.records[0]
        if flow.source in _own_addresses(config):
            return "node"
        return "pod" if not _knows_pods(config) or _is_pod(config, flow.source) else "uplink"

    def close(self) -> None:
        super().close()
        self._instance.close()


def _own_addresses(config: np.void) -> set[bytes]:
    return {config[f"node{family}"]["w"].tobytes() for family in FAMILIES}


def _knows_pods(config: np.void) -> bool:
    return any(int(config[f"pod_cidr_count{family}"]) for family in FAMILIES)


def _is_pod(config: np.void, address: bytes) -> bool:
    """Inside one of the pod ranges of the config record."""
    wanted = np.frombuffer(address, np.uint32)
    family = family_of(address)
    ranges = config[f"pod_cidr{family}"][: int(config[f"pod_cidr_count{family}"])]
    matching = (wanted & ranges["mask"]["w"]) == ranges["net"]["w"]
    return bool(matching.all(axis=1).any())
