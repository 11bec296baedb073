"""A planner on fake tables, and resolved ports to plan: what tests of planning share."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lbctl.addresses import parse_address
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.records import frontend_key, marker_key
from lbctl.datapath.regions import region_of, table_places
from lbctl.datapath.shares import Shape, likelihood
from lbctl.datapath.tables import Records
from lbctl.model.names import PortName
from lbctl.model.records import DEFAULT_WEIGHT
from lbctl.plan.changes import Plan
from lbctl.program import readback, writes
from lbctl.resolve.ports import (
    AT_RANDOM,
    Choice,
    Endpoint,
    Frontend,
    FrontendKind,
    ResolvedPort,
)
from tests.support.fake_tables import FakeTables

TCP = 6
NONE_SEEN = np.zeros(0, bool)


def endpoints(
    *places: str,
    local: Iterable[str] = (),
    weights: Mapping[str, int] | None = None,
    near: Iterable[str] = (),
) -> tuple[Endpoint, ...]:
    here, close, weighed = set(local), set(near), weights or {}
    found = []
    for place in places:
        address, _, port = place.partition(":")
        weight = weighed.get(place, DEFAULT_WEIGHT)
        found.append(
            Endpoint(parse_address(address), int(port or 80), place in here, weight, place in close)
        )
    return tuple(sorted(found))


def frontend(address: str, port: int = 80, kind: int = FrontendKind.CLUSTER_IP) -> Frontend:
    return Frontend(parse_address(address), port, TCP, kind)


def resolved(
    name: str,
    cluster: tuple[Endpoint, ...] = (),
    frontends: tuple[Frontend, ...] = (),
    local: tuple[Endpoint, ...] | None = None,
    local_drop: bool = False,
    external_local: bool = False,
    affinity_seconds: int = 0,
    seniority: bytes = b"",
    choice: Choice = AT_RANDOM,
) -> ResolvedPort:
    return ResolvedPort(
        name=name,
        protocol=TCP,
        frontends=frontends,
        cluster=cluster,
        local=tuple(e for e in cluster if e.local) if local is None else local,
        local_drop=local_drop,
        internal_local=False,
        external_local=external_local,
        affinity_seconds=affinity_seconds,
        source_ranges=(),
        warnings=(),
        hints="",
        service=PortName.parse(name).owner,
        seniority=seniority,
        choice=choice,
    )


class Node:
    """Planner and maps of one node, and a clock."""

    def __init__(self, tables: FakeTables | None = None) -> None:
        self.tables = tables or FakeTables()
        self.now = 100.0
        self.planner, self.leftovers = readback.read(self.tables, self.now)

    def apply(self, *ports: ResolvedPort, gone: Iterable[str] = ()) -> Plan:
        self.now += 0.01
        changes: dict[str, ResolvedPort | None] = {p.name: p for p in ports}
        changes.update(dict.fromkeys(gone))
        plan = self.planner.plan(changes, self.now)
        writes.apply(plan, self.tables)
        return plan

    def restart(self) -> int:
        """Returns how many stores the start itself made."""
        self.planner, self.leftovers = readback.read(self.tables, self.now)
        return readback.repair(self.planner, self.leftovers, self.tables)

    def service(self, name: str) -> Any:
        """The record of a service port."""
        return self.tables.services.records[self.planner.services[name].id]

    def likely(self, name: str, field: str = "cluster") -> dict[str, float]:
        """How likely each endpoint of a set is, drawn from all its slots alike."""
        base, length = region_of(int(self.service(name)[field]))
        slots = self.tables.slots.records[base : base + length]
        found = likelihood(Shape(slots["share"], slots["other"]))
        return dict(zip(self.addresses(slots["backend"]), found.tolist(), strict=True))

    def hashed(self, name: str, field: str = "cluster_table") -> list[str]:
        """The endpoints of a table, by hash."""
        base, length = region_of(int(self.service(name)[field]))
        places = table_places(self.tables.hash_tables.records)
        return self.addresses(places[base : base + length])

    def addresses(self, ids: Records) -> list[str]:
        """Of these backends, IPv4."""
        rows = self.tables.backends.records["addr"]["w"][ids]
        return [".".join(map(str, row.tobytes()[12:])) for row in rows]

    def lookup(self, address: str, port: int = 80, field: str = "cluster") -> list[str] | str:
        """What the programs would find: endpoints as text, or "miss", "refuse", "drop"."""
        frontends = Frontends(self.tables.frontends)
        entry = frontends.get(frontend_key(parse_address(address), port, TCP))
        if entry is None:
            return "miss"
        service, _ = entry
        assert frontends.get(marker_key(parse_address(address)))
        word = int(self.tables.services.records[field][service])
        base, length = region_of(word)
        if not length:
            return "drop" if word == consts.REGION_DROP else "refuse"
        found = []
        for backend in self.tables.slots.records["backend"][base : base + length]:
            row = self.tables.backends.records[backend]
            assert row["flags"] & consts.BACKEND_SERVING
            assert row["service"] == service
            endpoint = frontends.get(row["addr"].tobytes() + row["port"].tobytes() + b"\0")
            assert endpoint
            assert endpoint[1] == consts.FRONTEND_ENDPOINT
            address_bytes = row["addr"].tobytes()
            number = int.from_bytes(row["port"].tobytes(), "big")
            found.append(f"{'.'.join(map(str, address_bytes[12:]))}:{number}")
        return found


WEB = frontend("10.96.0.1")
