"""Who talks to what now: live flows by client, service port and endpoint, of millions at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import numpy as np

from lbctl.addresses import format_address, format_endpoint
from lbctl.datapath import consts, flows
from lbctl.datapath.tables import ArrayTable, FlowTable, Records
from lbctl.model.names import PortName
from lbctl.observe.places import Places

MOST_EDGES: Final = 200
_KEY: Final = np.dtype([("src", "u1", 16), ("service", "u4"), ("backend", "u4")])


class Edge(msgspec.Struct, frozen=True):
    """So many flows from here by way of there to that."""

    client: str
    service: str
    backend: str
    flows: int


def edges(
    tables: Iterable[FlowTable],
    backends: ArrayTable,
    name_of: Callable[[int], PortName | None],
    places: Places,
) -> list[Edge]:
    """Those with the most flows."""
    keys, counts = _counted(tables)
    most = np.argsort(-counts, kind="stable")[:MOST_EDGES]
    found = []
    for key, count in zip(keys[most], counts[most].tolist(), strict=True):
        service = name_of(int(key["service"]))
        client = key["src"].tobytes()
        found.append(
            Edge(
                client=_client(client, places),
                service=service.label if service else "?",
                backend=_endpoint(backends.records[int(key["backend"])], places),
                flows=count,
            )
        )
    return found


def _counted(tables: Iterable[FlowTable]) -> tuple[Records, Records]:
    """Each client, service and backend that occur together, and how often."""
    parts = []
    for table in tables:
        for cells in table.snapshots(flows.STEP_CELLS, consts.STATE_LIVE):
            chosen = cells[flows.counted(cells)]
            part = np.zeros(len(chosen), _KEY)
            part["src"], part["service"] = chosen["src"], chosen["service"]
            part["backend"] = flows.backend_ids(chosen)
            parts.append(part)
    whole = np.concatenate([np.empty(0, _KEY), *parts])
    rows, counts = np.unique(whole.view(f"V{_KEY.itemsize}"), return_counts=True)
    keys: Records = rows.view(_KEY)
    return keys, counts


def _client(address: bytes, places: Places) -> str:
    place = places.of(address)
    text = format_address(address)
    return place.name or (f"{text} ({place.hint})" if place.hint else text)


def _endpoint(record: np.void, places: Places) -> str:
    address, port = record["addr"].tobytes(), int(record["port"])
    name = places.of(address).name
    number = int.from_bytes(port.to_bytes(2, "little"), "big")
    return f"{name}:{number}" if name else format_endpoint(address, number)
