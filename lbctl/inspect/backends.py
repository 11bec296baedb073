"""Endpoints as they are programmed: one row per service port and endpoint."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np

from lbctl.addresses import format_address, format_endpoint
from lbctl.datapath import consts
from lbctl.datapath.tables import ArrayTable, HashTable
from lbctl.inspect import names
from lbctl.model.names import PortName


class BackendArrays(Protocol):
    """The arrays by backend id."""

    @property
    def backends(self) -> ArrayTable: ...
    @property
    def backend_live(self) -> ArrayTable: ...


class BackendTables(BackendArrays, Protocol):
    """The maps this module reads."""

    @property
    def names(self) -> HashTable: ...


class BackendRow(msgspec.Struct, frozen=True):
    """An endpoint of a service port. One that has left its service is `serving: false` until no
    flow uses it any more."""

    service: PortName
    address: str
    port: int
    endpoint: str  # address:port, bracketed for IPv6
    id: int
    generation: int
    serving: bool
    here: bool  # runs on this node
    sets: tuple[str, ...]  # of cluster, local
    flows: int  # that are open now, TCP connections and others


def list_backends(tables: BackendTables, query: str = "") -> list[BackendRow]:
    """Every backend, or those of the service that `query` means, also those only kept for their
    flows; by service, then address. Raises NotFound."""
    known = names.find(tables.names, query) if query else names.all_names(tables.names)
    owners = tables.backends.records["service"]
    used = tables.backends.records["port"] != 0  # a freed record is blank but for its generation
    ids = np.flatnonzero(used & np.isin(owners, list(known)))
    rows = rows_of(tables, ids.tolist(), known)
    return sorted(rows, key=lambda row: (row.service, row.address, row.port, row.id))


def rows_of(
    tables: BackendArrays, ids: Sequence[int], known: dict[int, PortName]
) -> list[BackendRow]:
    """The records with these ids, in their order; `known` names the services they belong to."""
    ids = list(ids)
    records, live = tables.backends.records[ids], tables.backend_live.records[ids].tolist()
    rows = []
    for backend, record, flows in zip(ids, records, live, strict=True):
        service, flags = int(record["service"]), int(record["flags"])
        port = socket.ntohs(int(record["port"]))
        address = record["addr"].tobytes()
        sets = [("cluster", consts.BACKEND_IN_CLUSTER), ("local", consts.BACKEND_IN_LOCAL)]
        rows.append(
            BackendRow(
                service=known.get(service) or PortName.parse(f"service id {service}"),
                address=format_address(address),
                port=port,
                endpoint=format_endpoint(address, port),
                id=backend,
                generation=int(record["generation"]),
                serving=bool(flags & consts.BACKEND_SERVING),
                here=bool(flags & consts.BACKEND_LOCAL),
                sets=tuple(name for name, flag in sets if flags & flag),
                flows=flows,
            )
        )
    return rows
