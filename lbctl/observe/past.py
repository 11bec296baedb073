"""New flows that nobody listened to, as far as they can still be seen: those that are open."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from ebpf.flowevents import EVENT
from lbctl.datapath import clock, consts, flows
from lbctl.datapath.tables import FlowTable, Records

_SAME = (
    *("src", "dst", "addr", "sport", "dport", "port", "client_port", "proto", "kind"),
    *("service", "backend", "opened", "seen"),
)


def opened(tables: Iterable[FlowTable], since: int, before: int) -> Records:
    """As events, sorted: flows that began between these readings (ns) of the monotonic clock, to
    about a second, and are open."""
    found = [np.empty(0, EVENT)]
    for table in tables:
        for cells in table.snapshots(flows.STEP_CELLS, consts.STATE_LIVE):
            found.append(_events(flows.take(cells, flows.counted(cells))))
    events = np.concatenate(found)
    events = events[(events["time"] >= since) & (events["time"] < before)]
    return events[np.argsort(events["time"], kind="stable")]


def _events(cells: Records) -> Records:
    events = np.zeros(len(cells), EVENT)
    for name in _SAME:
        events[name] = cells[name]
    events["what"] = consts.EVENT_OPENED
    events["packets_in"], events["bytes_in"] = cells["packets"], cells["bytes"]
    ages = (np.uint32(clock.current_beat()) - cells["opened"]).astype(np.int32)
    now = time.monotonic_ns()
    beat = clock.seconds(1) * 1e9
    events["time"] = np.maximum(0, now - (np.maximum(0, ages) * beat).astype(np.int64))
    return events
