"""Service ports as they are programmed: addresses, policy, backends, counters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol

import msgspec
import numpy as np

from lbctl.addresses import Prefix, format_address, format_endpoint
from lbctl.datapath import clock, consts
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.likelihood import Kind, odds
from lbctl.datapath.ranges import ranges_of
from lbctl.datapath.records import ADDRESS_BYTES, IDENTITY_BYTES
from lbctl.datapath.regions import ArrayContents, region_of
from lbctl.datapath.tables import ArrayTable, FlowTable, HashTable, Records
from lbctl.datapath.ticks import TICK_SECONDS
from lbctl.errors import NotFound
from lbctl.inspect import names
from lbctl.inspect.backends import BackendRow, rows_of
from lbctl.inspect.traffic import totals
from lbctl.model.names import PortName
from lbctl.resolve.hints import NO_HINTS
from lbctl.resolve.ports import FrontendKind

_ALGORITHMS = {
    consts.ALGORITHM_RANDOM: "random",
    consts.ALGORITHM_ROUND_ROBIN: "round-robin",
    consts.ALGORITHM_LEAST_CONNECTIONS: "least-connections",
    consts.ALGORITHM_MAGLEV: "maglev",
    consts.ALGORITHM_SOURCE_HASH: "source-hash",
}

# Kind of address to what people call it; the other flags of a frontend are not kinds.
KINDS = {
    FrontendKind.CLUSTER_IP: "ClusterIP",
    FrontendKind.NODE_PORT: "NodePort",
    FrontendKind.EXTERNAL_IP: "ExternalIP",
    FrontendKind.LOAD_BALANCER: "LoadBalancer",
}


class ServiceTables(Protocol):
    """The maps this module reads."""

    @property
    def names(self) -> HashTable: ...
    @property
    def frontends(self) -> ArrayTable: ...
    @property
    def services(self) -> ArrayTable: ...
    @property
    def slots(self) -> ArrayTable: ...
    @property
    def backends(self) -> ArrayTable: ...
    @property
    def hash_tables(self) -> ArrayTable: ...
    @property
    def service_counters(self) -> ArrayTable: ...
    @property
    def backend_live(self) -> ArrayTable: ...
    @property
    def source_ranges(self) -> HashTable: ...


class AddressRow(msgspec.Struct, frozen=True, order=True):
    """One address of a service port."""

    address: str
    port: int
    endpoint: str  # address:port, bracketed for IPv6
    kinds: tuple[str, ...]
    source_ranges: bool  # only clients of loadBalancerSourceRanges may use it


class Counters(msgspec.Struct, frozen=True):
    """Since the service port was first programmed. "in" is to the backends; `live` are connections
    that are open now."""

    connections: int
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    live: int


class ServiceRow(msgspec.Struct, frozen=True):
    """One service port of one family. `cluster` and `local` are numbers of backends in the sets;
    `without_backends` is what happens to traffic when the cluster set is empty, `without_local`
    when the local one is and a policy asks for it.

    Of listings, `source_ranges`, `hints`, `troubles` and `backends` are left out. `hints` is why
    topology hints narrow the cluster set or why not, which only a running agent knows (else None);
    `troubles` is why its service is not served as the object says, which also it alone knows."""

    name: PortName
    id: int
    addresses: tuple[AddressRow, ...]
    internal_policy: str
    external_policy: str
    affinity_seconds: int
    forwarding: str  # of traffic from outside to other nodes' backends: snat or dsr
    algorithm: str
    slow_start_seconds: int  # 0: none
    near: int  # so many of the cluster set's backends are near ones, and come first
    spill_over: float  # ... while they are at most so many times as busy as the others
    flows_leave_seconds: int | None  # after their backend; None: they are kept
    cluster: int
    local: int
    without_backends: str
    without_local: str
    counters: Counters
    source_ranges: tuple[str, ...] = ()
    hints: str | None = None
    troubles: tuple[str, ...] = ()
    backends: tuple[BackendRow, ...] = ()


def list_services(
    tables: ServiceTables, namespace: str = "", flow_tables: Iterable[FlowTable] = ()
) -> list[ServiceRow]:
    """All service ports, or those of one namespace, by name. Their `backends` are left out. What
    is in `flow_tables` counts too.

    A service that was removed keeps its name as long as flows may refer to it; without addresses it
    is no service any more, and is not listed.
    """
    known = names.all_names(tables.names)
    if namespace:
        known = {service: name for service, name in known.items() if name.namespace == namespace}
    return _rows(tables, known, flow_tables)


def show(
    tables: ServiceTables,
    query: str,
    hints: dict[str, str] | None = None,
    troubles: dict[str, tuple[str, ...]] | None = None,
    flow_tables: Iterable[FlowTable] = (),
) -> list[ServiceRow]:
    """The service ports that `query` means, with all that is known. Raises NotFound.

    `hints` and `troubles` are what status.read_hints and read_troubles found: sentences by the name
    of a port, and by that of a service.
    """
    said = troubles or {}
    known = _find(tables.names, query, said)
    always = {number for number, name in known.items() if str(name.owner) in said}
    rows = _rows(tables, known, flow_tables, always)
    if not rows:
        message = f"service {query!r} is being removed"
        if hints is None:  # no agent that could say
            message += ", or another service has its addresses"
        raise NotFound(message, "If it is removed, it only waits for its flows to end.")
    guarded = {row.id for row in rows if any(a.source_ranges for a in row.addresses)}
    ranges = _ranges(tables.source_ranges, guarded) if guarded else {}
    return [
        msgspec.structs.replace(
            row,
            backends=_backends(tables, row),
            source_ranges=tuple(map(str, sorted(ranges.get(row.id, ())))),
            hints=None if hints is None else hints.get(row.name.text, NO_HINTS),
            troubles=said.get(str(row.name.owner), ()),
        )
        for row in rows
    ]


def any_dsr(tables: ServiceTables) -> bool:
    """Whether the answers of any service's endpoints go straight back to clients."""
    return bool((tables.services.records["flags"] & consts.SERVICE_DSR).any())


def _find(
    table: HashTable, query: str, troubles: dict[str, tuple[str, ...]]
) -> dict[int, PortName]:
    try:
        return names.find(table, query)
    except NotFound as error:
        wanted = query.partition(":")[0]
        for name, sentences in troubles.items():
            if wanted in (name, name.partition("/")[2]):
                raise NotFound(f"service {name} is not served", " ".join(sentences)) from error
        raise


def _rows(
    tables: ServiceTables,
    known: dict[int, PortName],
    flow_tables: Iterable[FlowTable],
    always: Collection[int] = (),
) -> list[ServiceRow]:
    """Of those that have addresses, and of `always`."""
    addresses = _addresses(tables.frontends, known)
    ids = sorted(known, key=known.__getitem__)
    records = _by_name(tables.services.records[ids])
    counters = _by_name(totals(tables.service_counters.records, flow_tables)[ids])
    return [
        _row(service, known[service], addresses.get(service, ()), record, counted)
        for service, record, counted in zip(ids, records, counters, strict=True)
        if service in addresses or service in always
    ]


def _by_name(records: Records) -> Iterator[dict[str, int]]:
    """Structured records of integers as one dict each; what is an array is left out."""
    fields = [name for name in records.dtype.names or () if records[name].ndim == 1]
    columns = (records[field].tolist() for field in fields)
    return (dict(zip(fields, values, strict=True)) for values in zip(*columns, strict=True))


def _row(
    service: int,
    name: PortName,
    addresses: Sequence[AddressRow],
    record: dict[str, int],
    counted: dict[str, int],
) -> ServiceRow:
    flags, affinity = record["flags"], record["affinity"]
    return ServiceRow(
        name=name,
        id=service,
        addresses=tuple(addresses),
        internal_policy=_policy(flags, consts.SERVICE_INTERNAL_LOCAL),
        external_policy=_policy(flags, consts.SERVICE_EXTERNAL_LOCAL),
        affinity_seconds=int(clock.seconds(affinity)) if flags & consts.SERVICE_AFFINITY else 0,
        forwarding="dsr" if flags & consts.SERVICE_DSR else "snat",
        algorithm=_ALGORITHMS.get(record["algorithm"], str(record["algorithm"])),
        slow_start_seconds=round(record["slow_start"] * TICK_SECONDS),
        near=record["near"],
        spill_over=record["spill_over"] / consts.SPILL_UNIT,
        flows_leave_seconds=_leave(record["flows_leave"]),
        cluster=region_of(record["cluster"])[1],
        local=region_of(record["local"])[1],
        without_backends=_without(record["cluster"]),
        without_local=_without(record["local"]),
        counters=msgspec.convert(counted, Counters),
    )


def _without(region: int) -> str:
    return "drop" if region & consts.REGION_DROP else "refuse"


def _leave(stored: int) -> int | None:
    return round((stored - 1) * TICK_SECONDS) if stored else None


def _policy(flags: int, local: int) -> str:
    return "Local" if flags & local else "Cluster"


def _addresses(frontends: ArrayTable, wanted: Iterable[int]) -> dict[int, list[AddressRow]]:
    """By service id, sorted."""
    entries = Frontends(frontends).read_all()
    chosen = np.flatnonzero(np.isin(entries.services, np.fromiter(wanted, np.int64)))
    columns = entries.services[chosen].tolist(), entries.flags[chosen].tolist()
    found: dict[int, list[AddressRow]] = defaultdict(list)
    for key, service, flags in zip(entries.keys[chosen], *columns, strict=True):
        address, port = key[:ADDRESS_BYTES].tobytes(), key[ADDRESS_BYTES:IDENTITY_BYTES].tobytes()
        found[service].append(_address(address, int.from_bytes(port, "big"), flags))
    for rows in found.values():
        rows.sort()
    return found


def _address(address: bytes, port: int, flags: int) -> AddressRow:
    return AddressRow(
        address=format_address(address),
        port=port,
        endpoint=format_endpoint(address, port),
        kinds=tuple(text for kind, text in KINDS.items() if flags & kind),
        source_ranges=bool(flags & FrontendKind.SOURCE_RANGES),
    )


def _ranges(table: HashTable, wanted: set[int]) -> dict[int, list[Prefix]]:
    """Source ranges of some services, by id."""
    found: dict[int, list[Prefix]] = defaultdict(list)
    for keys, _ in table.batches():
        for number, prefix in ranges_of(keys[np.isin(keys["service"], list(wanted))]):
            found[number].append(prefix)
    return found


def _backends(tables: ServiceTables, row: ServiceRow) -> tuple[BackendRow, ...]:
    """The backends in either set, through the service's own regions."""
    record = tables.services.records[row.id]
    contents = ArrayContents(
        tables.slots.records, tables.backends.records, tables.hash_tables.records
    )
    ids = {
        backend for field in ("cluster", "local") for backend in contents.region(int(record[field]))
    }
    kinds: tuple[Kind, Kind] = ("cluster", "local")
    chances = {kind: odds(tables, row.id, kind) for kind in kinds}
    return tuple(
        msgspec.structs.replace(
            found,
            shares={kind: chances[kind].get(found.id, 0.0) for kind in kinds if kind in found.sets},
        )
        for found in rows_of(tables, sorted(ids), {row.id: row.name})
    )
