"""What flows that live have carried: it is added to their service's totals when they end."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from lbctl.datapath import consts, flows
from lbctl.datapath.tables import FlowTable, Records

_SIDE = consts.CELL_SIDE | consts.CELL_DIRECT | consts.CELL_NOTE | consts.CELL_FRAGMENT


def totals(ended: Records, tables: Iterable[FlowTable]) -> Records:
    """By service id: what `ended` flows carried (the records of `service_counters`), and living
    ones besides."""
    found = ended.copy()
    for table in tables:
        for cells in table.snapshots(flows.STEP_CELLS, consts.STATE_LIVE, tuples=False):
            services = flows.live(cells) & (cells["kind"] & _SIDE == 0)
            reply = cells["kind"] & consts.CELL_REPLY != 0
            for way, which in (("in", services & ~reply), ("out", services & reply)):
                part = cells[which]
                _add(found[f"packets_{way}"], part["service"], part["packets"])
                _add(found[f"bytes_{way}"], part["service"], part["bytes"])
    return found


def _add(column: Records, ids: npt.NDArray[np.uint32], amounts: Records) -> None:
    known = ids < len(column)
    np.add.at(column, ids[known], amounts[known].astype(column.dtype))
