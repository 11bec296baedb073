"""New flows that nobody listened to, as far as they can still be seen: those that are open."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import numpy as np

from ebpf.flowevents import EVENT
from lbctl.datapath import clock, consts, flows
from lbctl.datapath.tables import FlowTable, Records

BEAT: Final = int(clock.seconds(1) * 1e9)  # ns
_IDENTITY: Final = ("src", "dst", "sport", "dport", "proto", "backend")
_SAME: Final = (
    *("src", "dst", "addr", "sport", "dport", "port", "client_port", "proto", "kind"),
    *("service", "backend", "opened", "seen"),
)


def opened(tables: Iterable[FlowTable], since: int, before: int) -> Records:
    """As events, sorted: flows that began between these readings (ns) of the monotonic clock, as
    far as the beat tells that their cells have, and are open."""
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
    began = (np.maximum(0, ages) * float(BEAT)).astype(np.int64)
    events["time"] = np.maximum(0, clock.beat_began(time.monotonic()) - began)
    return events


def identities(events: Records) -> list[bytes]:
    """What tells flows that are open at one time apart, of each."""
    named = np.zeros(len(events), [(name, events.dtype[name]) for name in _IDENTITY])
    for name in _IDENTITY:
        named[name] = events[name]
    return [row.tobytes() for row in named]
