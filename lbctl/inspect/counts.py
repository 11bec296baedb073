"""What is counted of services and endpoints, as columns over all of them: cheap for thousands.

No column costs a system call per service: names come in batches, the rest from mapped arrays.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from lbctl.datapath import consts
from lbctl.datapath.flows import CARRIED
from lbctl.datapath.tables import ArrayTable, HashTable, Records

Column = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

COUNTED = ("connections", *CARRIED)


class CountTables(Protocol):
    """The maps this module reads."""

    @property
    def names(self) -> HashTable: ...
    @property
    def services(self) -> ArrayTable: ...
    @property
    def service_counters(self) -> ArrayTable: ...
    @property
    def backends(self) -> ArrayTable: ...
    @property
    def backend_live(self) -> ArrayTable: ...


class ServiceCounts(msgspec.Struct, frozen=True):
    """One row per service port that has a name: its id and stored text, what was counted since it
    was first programmed, and its flows of now."""

    ids: npt.NDArray[np.uint32]
    texts: list[bytes]
    totals: dict[str, Column]  # by COUNTED
    live: Column
    internal_alone: Mask  # its internal policy is Local, and only other nodes have endpoints
    external_alone: Mask


def of_services(tables: CountTables, carried: Records | None) -> ServiceCounts:
    """As of now; packets and bytes as of `carried`, by service id, or of flows that ended since."""
    parts = [(keys["service"], values["text"].tolist()) for keys, values in tables.names.batches()]
    ids = np.concatenate([ids for ids, _ in parts]) if parts else np.empty(0, np.uint32)
    counted = tables.service_counters.records[ids]
    if carried is not None:
        known = ids < len(carried)
        for name in CARRIED:
            counted[name][known] = np.maximum(counted[name][known], carried[name][ids[known]])
    records = tables.services.records[ids]
    alone = records["local"] & np.uint64(consts.REGION_DROP) != 0
    return ServiceCounts(
        ids=ids,
        texts=[text for _, texts in parts for text in texts],
        totals={name: counted[name] for name in COUNTED},
        live=counted["live"],
        internal_alone=alone & (records["flags"] & consts.SERVICE_INTERNAL_LOCAL != 0),
        external_alone=alone & (records["flags"] & consts.SERVICE_EXTERNAL_LOCAL != 0),
    )


class EndpointCounts(msgspec.Struct, frozen=True):
    """One row per endpoint of some services, those that only wait for their flows to end too."""

    ids: npt.NDArray[np.int64]
    records: npt.NDArray[Any]
    serving: Mask
    live: Column


def of_endpoints(tables: CountTables, services: npt.NDArray[np.uint32]) -> EndpointCounts:
    """Of the service ports with these ids."""
    records = tables.backends.records
    ids = np.flatnonzero((records["port"] != 0) & np.isin(records["service"], services))
    found = records[ids]
    return EndpointCounts(
        ids=ids,
        records=found,
        serving=found["flags"] & consts.BACKEND_SERVING != 0,
        live=tables.backend_live.records[ids],
    )
