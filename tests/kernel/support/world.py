"""A node's data path without a node: the real programs on small maps that nothing else sees.

Packets go through it by BPF_PROG_TEST_RUN; no interface is touched. Services are programmed in the
order that docs/design.md prescribes for the agent.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ebpf import flowtable, maps
from ebpf.compile import compiler
from ebpf.kernel import clock, testrun
from ebpf.layouts import Bundle
from ebpf.maps.buckets import elements_for
from ebpf.maps.sizes import Sizes
from ebpf.programs import Generation
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.records import frontend_key, marker_key
from tests.kernel.support.flows import Flows
from tests.kernel.support.known_flows import KnownFlows

NODE = {4: "192.0.2.1", 6: "fd00:192::1"}
SERVICE_RANGES = ("10.96.0.0/16", "fd00:96::/112")
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
# By map, where they are not those of `Sizes`.
SIZES = {
    "frontends": elements_for(128),
    "control4a": 1024,
    "cells4a": 8192,
    "control6a": 1024,
    "cells6a": 8192,
    "states6a": 8192,
    "fragments4": 256,
    "fragments6": 256,
}
# In beats. Each its own, and all so long that nothing ages while a test runs.
TIMEOUTS = {
    "syn_timeout": 300,
    "established_timeout": 9000,
    "closing_timeout": 500,
    "fin_wait_timeout": 170,
    "reset_timeout": 200,
    "time_wait_timeout": 400,
    "datagram_timeout": 250,
    "datagram_stream_timeout": 700,
}
PORT_MIN, PORT_MAX = 61000, 61999
NODE_PORT_MAX = 62099

Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one packet; `reasons` are the counters it moved."""

    verdict: int
    frame: bytes
    reasons: dict[str, int]


@dataclass(slots=True)
class Service:
    """A service port as programmed: where it is reached, and its endpoints with their ids."""

    id: int
    addresses: tuple[str, ...]
    port: int
    protocol: int
    backends: dict[Endpoint, int] = field(default_factory=dict)

    def address(self, family: int) -> str:
        return next(a for a in self.addresses if (":" in a) == (family == 6))

    def endpoints(self, family: int) -> set[Endpoint]:
        return {e for e in self.backends if (":" in e[0]) == (family == 6)}


class World(KnownFlows):
    """Programs and maps, made once; `reset` makes it as new between tests.

    `sizes` overrides the number of entries by map name.
    """

    def __init__(self, sizes: Mapping[str, int] | None = None) -> None:
        self.bundle: Bundle = compiler.bundle("live")
        enums = self.bundle.enums
        wanted = (
            Sizes(64, 256, 64, fast_path=True).max_entries(self.bundle) | SIZES | dict(sizes or {})
        )
        self.maps = {name: maps.create(self.bundle.maps[name], n) for name, n in wanted.items()}
        fds = {name: made.fd for name, made in self.maps.items()}
        self.programs = Generation.load(self.bundle, fds)
        self.reasons = {
            value: name.removeprefix("REASON_").lower()
            for name, value in enums.items()
            if name.startswith("REASON_") and name != "REASON_MAX"
        }
        self._counted: dict[str, int] | None = None  # read after the last packet
        arrays = {n: m for n, m in self.maps.items() if isinstance(m, maps.ArrayMap)}
        self.flow_table = Flows(enums, arrays)
        self.reset()

    def close(self) -> None:
        self.programs.close()
        for made in self.maps.values():
            made.close()

    def array(self, name: str) -> maps.ArrayMap:
        return cast(maps.ArrayMap, self.maps[name])

    def hash(self, name: str) -> maps.HashMap:
        return cast(maps.HashMap, self.maps[name])

    def flag(self, name: str) -> int:
        """A number of consts.h."""
        return self.bundle.enums[name]

    def reset(self) -> None:
        """No services, no flows, the default configuration."""
        for made in self.maps.values():
            if isinstance(made, maps.HashMap):
                made.delete_many(made.read_all()[0])
            elif isinstance(made, maps.ArrayMap):
                made.records[:] = np.zeros(1, made.records.dtype)
        flowtable.prepare(self.maps, self.bundle.enums)
        # A client of tests may have a small table to itself; what floods come to is the subject of
        # tests/kernel/test_flowtable_fairness.py.
        for name in ("table4a", "table6a"):
            self.array(name).records["share"] = 0
        self._next_service = self._next_backend = 1
        self._next_slot = 0
        self.configure(**TIMEOUTS)
        self.configure(
            port_min=PORT_MIN,
            port_max=PORT_MAX,
            node_port_max=NODE_PORT_MAX,
            cidr_count4=1,
            cidr_count6=1,
        )
        self.array("config").records["cidr4"][0, 0] = _cidr(SERVICE_RANGES[0])
        self.array("config").records["cidr6"][0, 0] = _cidr(SERVICE_RANGES[1])
        for family, address in NODE.items():
            self.set_node(family, address)

    def configure(self, **values: int) -> None:
        """Sets fields of the config record."""
        for name, value in values.items():
            self.array("config").records[name][0] = value

    def set_node(self, family: int, address: str | None) -> None:
        """The node's primary address; None when the agent knows none."""
        raw = mapped(address) if address else bytes(16)
        self.array("config").records[f"node{family}"]["w"][0] = np.frombuffer(raw, np.uint32)

    # ── services ──────────────────────────────────────────────────────────────────────────────

    def add_service(
        self,
        addresses: str | Sequence[str],
        port: int,
        protocol: str = "tcp",
        backends: Sequence[Endpoint] = (),
        local: Sequence[Endpoint] | None = None,
        flags: int = 0,
        drop: bool = False,
        cluster_ip: bool = True,
        shared: bool = False,
    ) -> Service:
        """A service port with its frontends, reachable at once.

        `local` is the local region, for SERVICE_INTERNAL_LOCAL among `flags`; `drop` makes empty
        regions drop. `cluster_ip` makes the addresses refuse their other ports, unless they are
        `shared` with the node.
        """
        addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
        service = Service(self._next_service, addresses, port, PROTOCOLS[protocol])
        self._next_service += 1
        self.array("services").records["flags"][service.id] = flags
        self.set_backends(service, backends, local, drop=drop)
        kind = self.flag("FRONTEND_CLUSTER_IP" if cluster_ip else "FRONTEND_EXTERNAL_IP")
        marker = self.flag("FRONTEND_ADDRESS" if cluster_ip else "FRONTEND_OUTER")
        both = self.flag("FRONTEND_SHARED") if shared else 0
        for address in addresses:
            self._put_frontend(address, port, service.protocol, service.id, kind | both)
            self._mark_address(address, marker | both if cluster_ip else marker)
        return service

    def call_by(self, service: Service, address: str, port: int, flags: int) -> None:
        """Another address and port of a service; `flags` are of enum frontend_flag."""
        self._put_frontend(address, port, service.protocol, service.id, flags)
        self._mark_address(address, self.flag("FRONTEND_OUTER"))

    def set_backends(
        self,
        service: Service,
        backends: Sequence[Endpoint],
        local: Sequence[Endpoint] | None = None,
        *,
        drop: bool = False,
    ) -> None:
        """Switches the sets; endpoints that left stop serving after the switch."""
        old = dict(service.backends)
        for endpoint in (*backends, *(local or ())):
            service.backends.setdefault(endpoint, 0)
            service.backends[endpoint] = old.get(endpoint) or self._add_backend(endpoint, service)
        for field_name, chosen in (("cluster", backends), ("local", local or ())):
            word = self._region([service.backends[e] for e in chosen], drop)
            self.array("services").store_word(service.id, field_name, word)
        for endpoint in old.keys() - {*backends, *(local or ())}:
            self.stop_serving(service, endpoint)
            del service.backends[endpoint]

    def stop_serving(self, service: Service, endpoint: Endpoint) -> None:
        self.array("backends").records["flags"][service.backends[endpoint]] &= (
            ~self.flag("BACKEND_SERVING") & 0xFF
        )

    def reuse_backend_id(self, service: Service, endpoint: Endpoint, other: Endpoint) -> None:
        """What the agent does long after `endpoint` left: its id is somebody else's now."""
        number = service.backends.pop(endpoint)
        generation = int(self.array("backends").records["generation"][number]) + 1
        self._write_backend(number, other, service, generation)
        service.backends[other] = number

    def remove_service(self, service: Service) -> None:
        """Frontends, then regions, then backends, as the agent does."""
        for address in service.addresses:
            self.remove_frontend(address, service.port, service.protocol)
            self.frontends.delete([marker_key(mapped(address))])
        for name in ("cluster", "local"):
            self.array("services").store_word(service.id, name, 0)
        for endpoint in service.backends:
            self.stop_serving(service, endpoint)

    def remove_frontend(self, address: str, port: int, protocol: int) -> None:
        assert self.frontends.delete([frontend_key(mapped(address), port, protocol)])

    def give_away(self, address: str) -> None:
        """The address is another proxy's, or the node's without a service."""
        self._mark_address(address, self.flag("FRONTEND_SHARED"))

    @property
    def frontends(self) -> Frontends:
        """The table of frontends as the agent writes it."""
        return Frontends(self.array("frontends"))

    def _put_frontend(
        self, address: str, port: int, protocol: int, service: int, flags: int
    ) -> None:
        self.frontends.put([(frontend_key(mapped(address), port, protocol), service, flags)])

    def _add_backend(self, endpoint: Endpoint, service: Service) -> int:
        number = self._next_backend
        self._next_backend += 1
        self._write_backend(number, endpoint, service, 1)
        self.frontends.hold(self.array("backends").records[number : number + 1])
        return number

    def _write_backend(
        self, number: int, endpoint: Endpoint, service: Service, generation: int
    ) -> None:
        address, port = endpoint
        flags = self.flag("BACKEND_SERVING") | self.flag("BACKEND_IN_CLUSTER")
        self.array("backends").records[number] = np.frombuffer(
            self.array("backends").spec.value.pack(
                addr=mapped(address),
                port=socket.htons(port),
                flags=flags,
                generation=generation,
                service=service.id,
            ),
            self.array("backends").spec.value.dtype,
        )[0]

    def _region(self, ids: Sequence[int], drop: bool) -> int:
        base = self._next_slot
        self._next_slot += len(ids)
        self.array("slots").records["backend"][base : base + len(ids)] = ids
        word = base | len(ids) << self.flag("REGION_LENGTH_SHIFT")
        return word | (self.flag("REGION_DROP") if drop and not ids else 0)

    def mark_endpoint(self, endpoint: Endpoint) -> None:
        """Some service has this endpoint."""
        address, port = endpoint
        record = np.zeros(1, self.array("backends").records.dtype)
        record["addr"]["w"] = np.frombuffer(mapped(address), np.uint32)
        record["port"] = socket.htons(port)
        self.frontends.hold(record)

    def mark_address(self, address: str) -> None:
        """Some service has frontends there that are no ClusterIP's."""
        self._mark_address(address, self.flag("FRONTEND_OUTER"))

    def _mark_address(self, address: str, flags: int) -> None:
        had = self.frontends.get(marker_key(mapped(address)))
        self.frontends.put([(marker_key(mapped(address)), 0, flags | (had[1] if had else 0))])

    # ── packets ───────────────────────────────────────────────────────────────────────────────

    def from_pod(self, frame: bytes, flags: int = 0) -> Outcome:
        """The hook at the host side of a pod's veth, for packets the pod sends."""
        return self._run("entry_from_pod", frame, flags)

    def to_pod(self, frame: bytes, flags: int = 0) -> Outcome:
        """The same for packets to the pod."""
        return self._run("entry_to_pod", frame, flags)

    def from_net(self, frame: bytes, flags: int = 0) -> Outcome:
        """The hook at an uplink, for packets that come in."""
        return self._run("entry_from_net", frame, flags)

    def to_net(self, frame: bytes, flags: int = 0) -> Outcome:
        """The same for packets that go out."""
        return self._run("entry_to_net", frame, flags)

    def at_driver(self, frame: bytes, flags: int = 0) -> Outcome:
        """The driver of an uplink, before any hook: the verdict is XDP's."""
        return self._run("xdp_uplink", frame, flags)

    def from_tunnel(self, frame: bytes, flags: int = 0) -> Outcome:
        """The hook at a device without link header: the frame begins with the IP header. The
        kernel's test run takes the protocol from bytes 12 and 13 all the same."""
        return self._run("entry_from_tunnel", frame, flags)

    def to_tunnel(self, frame: bytes, flags: int = 0) -> Outcome:
        """The same for packets that go out."""
        return self._run("entry_to_tunnel", frame, flags)

    def _run(self, entry: str, frame: bytes, flags: int) -> Outcome:
        before = self._counted or self.counts()
        result = testrun.run(self.programs.fds[entry], frame, flags=flags)
        after = self._counted = self.counts()
        moved = {name: count - before[name] for name, count in after.items()}
        return Outcome(result.retval, result.packet, {n: c for n, c in moved.items() if c})

    def run_many(self, entry: str, frames: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """Verdicts and frames only, without reading the counters in between."""
        self._counted = None
        program = self.programs.fds[entry]
        results = (testrun.run(program, frame) for frame in frames)
        return [(result.retval, result.packet) for result in results]

    def counts(self) -> dict[str, int]:
        """Counters by reason, since the maps were made."""
        sums = cast(maps.PerCpuArray, self.maps["counters"]).read_sum()
        return {name: int(sums[value]) for value, name in self.reasons.items()}

    def service_counts(self, service: Service) -> dict[str, int]:
        """What flows that ended have carried, and what those that live did so far."""
        row = self.array("service_counters").records[service.id]
        counts = {name: int(row[name]) for name in row.dtype.names}
        for flow in self.flows():
            if flow.service == service.id and flow.state != "side":
                direction = "out" if flow.reply else "in"
                counts[f"packets_{direction}"] += flow.packets
                counts[f"bytes_{direction}"] += flow.bytes
        return counts


def beat() -> int:
    """Now, in the unit of flow.seen."""
    return clock.kernel_clock().beat()


def mapped(address: str) -> bytes:
    """16 bytes; IPv4 as ::ffff:a.b.c.d."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return bytes(10) + b"\xff\xff" + socket.inet_aton(address)


def _cidr(text: str) -> Any:
    address, length = text.split("/")
    bits = int(length) + (0 if ":" in address else 96)
    mask = ((1 << bits) - 1) << (128 - bits)
    high_low = struct.pack("!QQ", mask >> 64, mask & (1 << 64) - 1)
    return ((np.frombuffer(mapped(address), np.uint32),), (np.frombuffer(high_low, np.uint32),))
