"""What services have carried, to the last packet: all flows that live are looked at for it."""

from __future__ import annotations

from collections.abc import Iterable

from lbctl.datapath import consts, flows
from lbctl.datapath.tables import FlowTable, Records


def totals(ended: Records, tables: Iterable[FlowTable]) -> Records:
    """By service id: what `ended` flows carried (the records of `service_counters`), and living
    ones besides."""
    found = ended.copy()
    for table in tables:
        for cells in table.snapshots(flows.STEP_CELLS, consts.STATE_LIVE, tuples=False):
            flows.add_carried(found, cells)
    return found
