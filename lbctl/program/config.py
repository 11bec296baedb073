"""The `config` record: timeouts, limits, service ranges and the node's own addresses."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lbctl.addresses import IPV4, IPV6, Prefix, family_of, of_family
from lbctl.datapath import clock, consts
from lbctl.datapath.tables import ArrayTable, HashTable, Records
from lbctl.errors import ConfigError
from lbctl.resolve.node import NodeFacts

# Seconds. Where kube-proxy sets conntrack's timeouts, these are its values; else they are
# conntrack's own, but for a finished connection: Linux keeps its ports for 60 s, by a timer that
# may be an eighth late.
TIMEOUTS: Final = {
    "syn_timeout": 60,
    "established_timeout": 86400,
    "closing_timeout": 3600,
    # TCP sends a FIN again at least every two minutes.
    "fin_wait_timeout": 180,
    "reset_timeout": 10,
    "time_wait_timeout": 75,
    "datagram_timeout": 30,
    "datagram_stream_timeout": 120,
}
# `seen` is of a beat, which may have begun 2.6 s before: what is in use must not look idle.
_LEAST_BEATS = 2
# An agent that has not said for so long that it lives is gone.
AGENT_SECONDS: Final = 5.0
# Above the ports the kernel gives out by itself (32768-60999), and reserved besides.
PORTS: Final = (61000, 64511)
# Of flows that the node's own sockets begin on the wire (bpf_src/node.h): right behind the others.
NODE_PORTS: Final = (64512, 65535)


@dataclass(frozen=True, slots=True)
class DataPathSettings:
    """What the record says beside the node's facts."""

    pass_midstream: bool  # kube-proxy may own TCP connections without a flow
    ports: tuple[int, int] = PORTS
    node_port_max: int = NODE_PORTS[1]
    socket_flags: int = 0  # CONFIG_SOCKET_*
    host_netns: int = 0  # cookie of the node's network namespace
    masquerade_by_device: bool = False  # never ask the kernel for the source of a route
    timeouts: tuple[tuple[str, float], ...] = ()  # those that differ from TIMEOUTS
    dsr_port: int = 0  # of outer UDP headers; 0: none are taken off
    dsr_ipip: bool = False  # outer headers that are put on have no UDP


# Fields that others write: lbctl/agent/beat.py, lbctl/observe/hub.py, lbctl/agent/fastpath.py.
_NOT_HERE: Final = (
    "agent_beat",
    "events_until",
    *("fast_open", "fast_until", "fast_epoch", "fast_mtu", "xdp"),
)


def store(table: ArrayTable, node: NodeFacts, settings: DataPathSettings) -> list[str]:
    """Make the record say this; returns the fields that differed, which alone are written.

    Raises ConfigError for more service ranges than the programs know.
    """
    wanted = _record(table.records.dtype, node, settings)
    current = table.records
    names = [n for n in wanted.dtype.names or () if n not in _NOT_HERE]
    changed = [n for n in names if (wanted[n] != current[n]).any()]
    for kind in _RANGES:
        counts = [f"{kind}_count4", f"{kind}_count6"]
        if any(name.startswith(kind) for name in changed):
            # Never a range that is half the old and half the new one.
            for name in counts:
                current[name] = 0
            changed = [n for n in changed if n not in counts] + counts
    for name in changed:
        current[name] = wanted[name]
    return changed


def store_devices(table: HashTable, wanted: Mapping[int, Mapping[int, bytes]]) -> int:
    """Make `devices` say by which addresses the node is known on its interfaces, by index and
    family; returns how many entries had to be written or deleted. Beyond its room the primary
    address serves."""
    keys = np.array(sorted(wanted)[: table.max_entries], np.uint32)
    values = np.zeros(len(keys), table.spec.value.dtype)
    for row, index in enumerate(keys.tolist()):
        for family, address in wanted[index].items():
            _put(values[f"node{family}"][row], address)
    found = dict(zip(*map(_pieces, table.read_all()), strict=True))
    new = dict(zip(_pieces(keys), _pieces(values), strict=True))
    gone = [key for key in found if key not in new]
    if gone:
        table.delete_many(gone)
    changed = np.array([found.get(k) != v for k, v in new.items()], bool)
    if changed.any():
        table.put_many(keys[changed], values[changed])
    return len(gone) + int(changed.sum())


def _pieces(records: Records) -> list[bytes]:
    return [record.tobytes() for record in records]


def _record(dtype: np.dtype[Any], node: NodeFacts, settings: DataPathSettings) -> npt.NDArray[Any]:
    record = np.zeros(1, dtype)
    record["flags"] = (
        consts.CONFIG_PASS_MIDSTREAM * settings.pass_midstream
        | consts.CONFIG_MASQUERADE_ALL * node.masquerade_all
        | consts.CONFIG_MASQUERADE_BY_DEVICE * settings.masquerade_by_device
        | consts.CONFIG_DSR_IPIP * settings.dsr_ipip
        | settings.socket_flags
    )
    record["host_netns"] = settings.host_netns
    for name, seconds in (*TIMEOUTS.items(), *settings.timeouts):
        record[name] = max(_LEAST_BEATS, clock.beats(seconds)) if seconds else 0
    record["agent_timeout"] = clock.beats(AGENT_SECONDS)
    record["port_min"], record["port_max"] = settings.ports
    record["node_port_max"] = settings.node_port_max
    record["dsr_port"] = socket.htons(settings.dsr_port)
    for family in (IPV4, IPV6):
        primary = node.primary(family)
        if primary is not None:
            _put(record[f"node{family}"][0], primary)
        serves = next((a for a in node.nodeport_addresses if family_of(a) == family), None)
        if serves is not None:
            _put(record[f"node_port{family}"][0], serves)
        _put_ranges(record, f"cidr{family}", f"cidr_count{family}", node.service_cidrs, family)
        name, count = f"pod_cidr{family}", f"pod_cidr_count{family}"
        _put_ranges(record, name, count, node.cluster_cidrs, family)
    return record


# Field of the record, entries it has room for, and what sets it.
_RANGES: Final = {
    "cidr": (consts.MAX_SERVICE_CIDRS, "--service-cidr"),
    "pod_cidr": (consts.MAX_POD_CIDRS, "--cluster-cidr (or clusterCIDR)"),
}


def _put_ranges(
    record: npt.NDArray[Any], name: str, count: str, prefixes: Sequence[Prefix], family: int
) -> None:
    ranges = of_family(prefixes, family)
    room, option = _RANGES[name.rstrip("46")]
    if len(ranges) > room:
        raise ConfigError(
            f"{option} names {len(ranges)} ranges of IPv{family}",
            hint=f"The programs know up to {room} ranges per family.",
        )
    for index, prefix in enumerate(ranges):
        _put(record[name][0, index]["net"], prefix.address)
        _put(record[name][0, index]["mask"], _mask(prefix))
    record[count] = len(ranges)


def _put(address: Any, raw: bytes) -> None:
    """A struct addr holds the address's bytes as they are."""
    address["w"] = np.frombuffer(raw, np.uint32)


def _mask(prefix: Prefix) -> bytes:
    return ((1 << 128) - (1 << (128 - prefix.length))).to_bytes(16, "big")
