"""Ways to break maps that an agent has filled, and services of all kinds to fill them with."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from ebpf.maps.buckets import BucketTable
from lbctl.addresses import parse_address, parse_prefix
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.regions import table_places
from lbctl.model.records import Balancing, ServiceObjects
from tests.support.fake_tables import FakeTables
from tests.support.reconciling import balanced, objects

BACKENDS = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def guarded(name: str, address: str) -> ServiceObjects:
    """A load balancer that has source ranges."""
    made = objects(name, "172.30.0.9", BACKENDS[:1])
    assert made.service
    service = msgspec.structs.replace(
        made.service,
        type="LoadBalancer",
        ingress_ips=(parse_address(address),),
        source_ranges=(parse_prefix("198.51.100.0/24"), parse_prefix("203.0.113.0/24")),
    )
    return msgspec.structs.replace(made, service=service)


def hashed() -> ServiceObjects:
    return balanced(objects("hashed", "172.30.0.15", BACKENDS), Balancing(algorithm="maglev"))


def weighted() -> ServiceObjects:
    """A service whose last endpoint is worth less than the others."""
    made = objects("weighted", "172.30.0.16", BACKENDS)
    (part,) = made.slices
    *most, last = part.endpoints
    endpoints = (*most, msgspec.structs.replace(last, weight=7))
    return msgspec.structs.replace(
        made, slices=(msgspec.structs.replace(part, endpoints=endpoints),)
    )


def usual() -> list[ServiceObjects]:
    """One of each kind."""
    return [
        objects("web", "172.30.0.1", BACKENDS),
        objects("dns", "172.30.0.2", BACKENDS[:2], port=53),
        objects("alone", "172.30.0.3", []),
        guarded("lb", "192.0.2.80"),
        hashed(),
        weighted(),
    ]


def lose_frontend(tables: FakeTables) -> None:
    Frontends(tables.frontends).delete([next(iter(tables.frontend_entries()))])


def change_frontend(tables: FakeTables) -> None:
    key, (service, flags) = next(iter(tables.frontend_entries().items()))
    Frontends(tables.frontends).put([(key, service ^ 1, flags)])


def add_frontend(tables: FakeTables) -> None:
    """An address leads to a service that has it not; markers lead to none."""
    found = tables.frontend_entries().items()
    key, owner = next((key, owner) for key, owner in found if owner[0])
    Frontends(tables.frontends).put([(bytes([key[0] ^ 1]) + key[1:], *owner)])


def lose_marker(tables: FakeTables) -> None:
    found = tables.frontend_entries().items()
    Frontends(tables.frontends).delete([key for key, (service, _) in found if not service])


def hide_frontends(tables: FakeTables) -> None:
    """What readers of the table go by first is wrong of every key."""
    control = np.asarray(tables.frontends.records).view(np.uint8)[32:]
    tags = control[: BucketTable(tables.frontends).places]
    tags[tags != 0] ^= 0x80


def lose_endpoint(tables: FakeTables) -> None:
    Frontends(tables.frontends).delete([next(iter(tables.endpoint_entries())) + b"\0"])


def miscount_endpoint(tables: FakeTables) -> None:
    Frontends(tables.frontends).hold(tables.backends.records[1:2])


def take_endpoint(tables: FakeTables) -> None:
    """Its entry says that it is a frontend."""
    key = next(iter(tables.endpoint_entries())) + b"\0"
    Frontends(tables.frontends).put([(key, 1, consts.FRONTEND_CLUSTER_IP)])


def add_endpoint(tables: FakeTables) -> None:
    nobodys = tables.backends.records[1:2].copy()
    nobodys["addr"]["w"][:, 3] ^= np.uint32(1 << 31)
    Frontends(tables.frontends).hold(nobodys)


def lose_name(tables: FakeTables) -> None:
    tables.names.delete(next(iter(tables.names.entries)))


def empty_set(tables: FakeTables) -> None:
    tables.services.records["cluster"][1] = 0


def change_policy(tables: FakeTables) -> None:
    tables.services.records["flags"][1] ^= 1


def lower_backend(tables: FakeTables) -> None:
    tables.backends.records["flags"][1] = 0


def mislead_slot(tables: FakeTables) -> None:
    """To a backend of another service."""
    owners = tables.backends.records["service"]
    foreign = next(i for i in range(1, len(owners)) if owners[i] not in (0, owners[1]))
    tables.slots.records["backend"][0] = foreign


def blank_slot(tables: FakeTables) -> None:
    tables.slots.records["backend"][0] = 0


def move_backend(tables: FakeTables) -> None:
    tables.backends.records["port"][1] = 9


def double_backend(tables: FakeTables) -> None:
    """Two of one service have the same address."""
    records = tables.backends.records
    owners = records["service"].tolist()
    other = owners.index(owners[1], 2)
    records["addr"][other] = records["addr"][1]


def lose_range(tables: FakeTables) -> None:
    tables.source_ranges.delete(next(iter(tables.source_ranges.entries)))


def add_range(tables: FakeTables) -> None:
    key = next(iter(tables.source_ranges.entries))
    tables.source_ranges.entries[key[:-1] + b"\x77"] = b"\1\0\0\0"


def change_weight(tables: FakeTables) -> None:
    tables.backends.records["weight"][1] = 9


def change_since(tables: FakeTables) -> None:
    """It would be spared as one that is new."""
    tables.backends.records["since"][1] = 12345


def change_share(tables: FakeTables) -> None:
    """Of a service all of whose endpoints are worth the same."""
    tables.slots.records[0] = tables.slots.records["backend"][0], 1000, 1


def equal_shares(tables: FakeTables) -> None:
    tables.slots.records["share"] = 0


def mislead_table(tables: FakeTables) -> None:
    places = table_places(tables.hash_tables.records)
    places[np.flatnonzero(places)[5]] = 1


def lose_table(tables: FakeTables) -> None:
    tables.services.records["cluster_table"] = 0


FAULTS: dict[Callable[[FakeTables], None], str] = {
    lose_frontend: "frontend",
    change_frontend: "frontend",
    add_frontend: "stray frontend",
    lose_marker: "frontend",
    hide_frontends: "frontend",
    lose_endpoint: "endpoint entry",
    miscount_endpoint: "endpoint entry",
    take_endpoint: "endpoint entry",
    add_endpoint: "endpoint entry",
    lose_name: "name",
    empty_set: "service",
    change_policy: "service",
    lower_backend: "endpoints",
    mislead_slot: "endpoints",
    blank_slot: "endpoints",
    move_backend: "endpoints",
    double_backend: "endpoints",
    change_weight: "endpoints",
    change_since: "endpoints",
    change_share: "endpoints",
    equal_shares: "endpoints",
    mislead_table: "endpoints",
    lose_table: "service",
    lose_range: "source range",
    add_range: "source range",
}
