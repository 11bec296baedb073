"""What is asked of the cells of a flow table, for whole arrays of them: rings, idleness, sums.

A flow is a ring of cells that have its generation and name each other by place (bpf_src/cells.h).
Its forward cell says its state; notes and fragments' ports are cells of their own, each a ring of
itself. Everything here takes copies of cells (ebpf/flowtable.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf.flowtable import CELL
from lbctl.datapath import consts
from lbctl.datapath.records import rows_as_bytes
from lbctl.datapath.tables import Records

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

# Cells looked at in one step: less than a millisecond, partners included.
STEP_CELLS = 2048
_STATES = 256  # of a byte
_MOST_CELLS = 4  # of a ring
# What ended and leaves nothing behind waits for a packet that another one overtook.
OVER_BEATS = 2
_LONE = consts.CELL_NOTE | consts.CELL_FRAGMENT
_NOT_FORWARD = consts.CELL_REPLY | consts.CELL_SIDE
_OVER = (consts.STATE_TIME_WAIT, consts.STATE_RESET)

# The cells that are at these places now.
At = Callable[[Records], Records]


def live(cells: Records) -> Mask:
    """Neither free, nor on the way from or to that, nor left for another cell."""
    found: Mask = (cells["state"] >= consts.STATE_LIVE) & ~cells["moved"]
    return found


def forward(cells: Records) -> Mask:
    """One for each flow, lone cells not counted."""
    found: Mask = live(cells) & (cells["kind"] & (_NOT_FORWARD | _LONE) == 0)
    return found


def lone(cells: Records) -> Mask:
    """Cells that are no flow's."""
    found: Mask = live(cells) & (cells["kind"] & _LONE != 0)
    return found


def goes_whole(cells: Records) -> Mask:
    """Those of flows whose packets go to another node as they are: flows of one cell."""
    found: Mask = cells["kind"] & (consts.CELL_DSR | consts.CELL_REPLY) == consts.CELL_DSR
    return found


def over(cells: Records) -> Mask:
    """Forward cells whose flow is closed or was reset: not counted as live any more."""
    found: Mask = np.isin(cells["state"], _OVER)
    return found


def counted(cells: Records) -> Mask:
    """Forward cells of flows that count as live ones of their service and backend."""
    found: Mask = forward(cells) & ~over(cells) & (cells["backend"] != 0)
    return found


@dataclass(frozen=True, slots=True)
class Rings:
    """Flows, one in each row."""

    forward: Records
    reply: Records  # blank where there is none, or the flow ended while this was read
    seen: npt.NDArray[np.uint32]  # beat of the last packet of either direction


def follow(cells: Records, at: At) -> Rings:
    """The flows of these forward (or lone) cells, whose other cells are read now."""
    seen = cells["seen"].copy()
    reply: Records = np.zeros(len(cells), CELL)
    rows = np.flatnonzero(cells["next"] != cells["place"])
    current = take(cells, rows)
    for step in range(1, _MOST_CELLS):
        found = at(current["next"])
        whole = (found["generation"] == cells["generation"][rows]) & live(found)
        whole &= found["place"] != cells["place"][rows]
        rows, current = rows[whole], take(found, whole)
        # Beats may wrap.
        later = (current["seen"] - seen[rows]).astype(np.int32) > 0
        seen[rows[later]] = current["seen"][later]
        if step == 1:
            rows_as_bytes(reply)[rows] = rows_as_bytes(current)
        if not len(rows):
            break
    return Rings(cells, reply, seen)


def timeouts(config: Records) -> Numbers:
    """Beats by (replied, state), from the one element of `config`."""
    table = np.full((2, _STATES), np.iinfo(np.int32).max, np.int64)
    for state, name in (
        (consts.STATE_SYN, "syn_timeout"),
        (consts.STATE_ESTABLISHED, "established_timeout"),
        (consts.STATE_CLOSING, "closing_timeout"),
        (consts.STATE_FIN_WAIT, "fin_wait_timeout"),
        (consts.STATE_RESET, "reset_timeout"),
        (consts.STATE_TIME_WAIT, "time_wait_timeout"),
    ):
        table[:, state] = int(config[name])
    table[0, consts.STATE_DATAGRAM] = int(config["datagram_timeout"])
    table[1, consts.STATE_DATAGRAM] = int(config["datagram_stream_timeout"])
    return table


def idle(rings: Rings, limits: Numbers, beat: int) -> Mask:
    """Which were not seen for longer than their state allows.

    One that is closed keeps its tuples as long as its server may: if that closed first.
    """
    # Both are 32 bits wide and may wrap; a cell seen after `beat` was read has a negative age.
    age = (np.uint32(beat & 0xFFFFFFFF) - rings.seen).astype(np.int32)
    # A cell that has no other speaks for itself.
    alone = lone(rings.forward) | goes_whole(rings.forward)
    flags = np.where(alone, rings.forward["flags"], rings.reply["flags"])
    replied = (flags & consts.CELL_REPLIED != 0).astype(np.intp)
    limit = limits[replied, rings.forward["state"]]
    closed = rings.forward["state"] == consts.STATE_TIME_WAIT
    rests = flags & consts.CELL_FIRST != 0
    limit = np.where(closed & ~rests, np.minimum(limit, OVER_BEATS), limit)
    found: Mask = age > limit
    return found


# Fields of struct service_counters.
CARRIED = ("packets_in", "bytes_in", "packets_out", "bytes_out")
# Cells that do not count for their service: each packet is counted once.
_BESIDE = consts.CELL_SIDE | consts.CELL_DIRECT | _LONE


def add_carried(found: Records, cells: Records) -> None:
    """Add to `found`, records of `service_counters`, what flows that live have carried: they do it
    themselves when they end."""
    services = live(cells) & (cells["kind"] & _BESIDE == 0)
    reply = cells["kind"] & consts.CELL_REPLY != 0
    for way, which in (("in", services & ~reply), ("out", services & reply)):
        part = cells[which]
        known = part["service"] < len(found)
        for what in ("packets", "bytes"):
            column = found[f"{what}_{way}"]
            np.add.at(column, part["service"][known], part[what][known].astype(column.dtype))


def backend_ids(cells: Records) -> Numbers:
    """Without the generations."""
    ids: Numbers = (cells["backend"] & consts.BACKEND_ID_MASK).astype(np.int64)
    return ids


def take(records: Records, which: npt.NDArray[Any]) -> Records:
    """The records at these places, byte for byte: numpy's own indexing copies field by field, and
    leaves what happens to be there in the gaps between fields."""
    rows = rows_as_bytes(np.ascontiguousarray(records))[which]
    taken: Records = rows.reshape(-1).view(records.dtype)
    return taken
