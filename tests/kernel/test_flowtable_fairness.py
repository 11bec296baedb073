"""Who gives way when the table is full: a source that floods it takes nothing from others.

The floods open flows by the same claims and evictions as packets do; `seen` and what was counted
say how old and how used each flow is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ebpf.kernel.clock import kernel_clock
from ebpf.maps.base import Records
from tests.kernel.support.flow_tables import PrivateTable, address, rings, table_bundle

pytestmark = pytest.mark.kernel
BUCKETS = 48
CELLS = 8 * BUCKETS
SHARE = CELLS // 16


@pytest.fixture(scope="module", params=["4", "6"])
def private(request: pytest.FixtureRequest) -> Iterator[PrivateTable]:
    made = PrivateTable(table_bundle(request.param), request.param, BUCKETS)
    made.share = SHARE
    made.load()
    yield made
    made.close()


@pytest.fixture
def full(private: PrivateTable) -> Iterator[PrivateTable]:
    """Without flows, and each source has a sixteenth of the cells as its share."""
    yield private
    seen = private.table.view()
    private.table.end(seen["place"], seen["generation"], 0)
    assert private.table.rooms().used == 0
    assert not private.records(f"held{private.family}").any()


def flows(
    private: PrivateTable,
    source: int,
    count: int,
    state: str,
    sources: int = 1,
    answered: bool = True,
) -> Records:
    """`count` flows from `sources` addresses that begin at `source`."""
    made = rings(private.enums, private.family, count, 2, state)
    for number in range(count):
        client = address(source + number % sources, private.family)
        made["src"][number, 0] = made["dst"][number, 1] = client
    made["packets"][:, 1] = 3 if answered else 0
    made["packets"][:, 0] = 3 if answered else 1
    made["seen"] = kernel_clock().beat()
    return made


def flood(private: PrivateTable, wanted: Records) -> int:
    """Opens them two by two, as packets would on two CPUs; how many got in."""
    return private.table.open(wanted, at_once=2)


def left(private: PrivateTable, wanted: Records) -> int:
    """How many of these flows are there."""
    cells = private.table.view()
    forward = cells[cells["kind"] & private.enums["CELL_REPLY"] == 0]
    sources = {row.tobytes() for row in wanted["src"][:, 0]}
    return sum(row.tobytes() in sources for row in forward["src"])


OTHERS, FLOOD = 0x0A100000, 0x0A200000
ONE_SOURCE = pytest.mark.parametrize(
    ("state", "answered"),
    [("STATE_SYN", False), ("STATE_DATAGRAM", False), ("STATE_DATAGRAM", True),
     ("STATE_ESTABLISHED", True)],
)  # fmt: skip


@ONE_SOURCE
def test_one_sources_flood_ends_nobody_elses(
    full: PrivateTable, state: str, answered: bool
) -> None:
    """Handshakes, datagrams asked and answered, completed handshakes: four times the table."""
    others = np.concatenate(
        [
            flows(full, OTHERS + 100 * number, 10, kind, 10)
            for number, kind in enumerate(
                ("STATE_SYN", "STATE_ESTABLISHED", "STATE_DATAGRAM", "STATE_DATAGRAM")
            )
        ]
    )
    assert flood(full, others) == 40
    flood(full, flows(full, FLOOD, 2 * CELLS, state, answered=answered))
    assert left(full, others) == 40
    # ... and refuses none.
    late = flows(full, OTHERS + 1000, 10, "STATE_SYN", 10)
    assert flood(full, late) == 10
    assert left(full, others) == 40
    assert left(full, late) == 10


def test_what_completed_handshakes_of_one_source_can_hold_is_bounded(full: PrivateTable) -> None:
    """Nobody ends an established flow; so who holds twice its share gets none of the last quarter.
    A source within its share gets in until all is full."""
    flood(full, flows(full, FLOOD, CELLS, "STATE_ESTABLISHED"))
    assert full.table.rooms().used <= CELLS * 3 // 4
    many = flows(full, OTHERS, CELLS // 32, "STATE_ESTABLISHED", 8)
    assert flood(full, many) == len(many)


def test_without_pressure_one_source_may_have_what_it_wants(full: PrivateTable) -> None:
    """In half of such a small table; a few may meet two buckets that are filled unevenly."""
    wanted = CELLS // 4
    assert flood(full, flows(full, FLOOD, wanted, "STATE_ESTABLISHED")) >= wanted - 3


def test_forged_sources_push_out_each_other(full: PrivateTable) -> None:
    """Handshakes from everywhere: they give way, the longest unseen first, and no conversation that
    was answered and used does."""
    others = np.concatenate(
        [
            flows(full, OTHERS, 15, "STATE_ESTABLISHED", 15),
            flows(full, OTHERS + 100, 15, "STATE_DATAGRAM", 2),
        ]
    )
    others["seen"] -= 50
    assert flood(full, others) == 30
    refused = 0
    for part in range(4):
        forged = flows(full, FLOOD + part * CELLS, CELLS, "STATE_SYN", CELLS, answered=False)
        forged["seen"] -= 20 - part
        refused += CELLS - flood(full, forged)
    assert left(full, others) == 30
    assert not refused
    cells = full.table.view()
    ages = cells["seen"][cells["state"] == full.enums["STATE_SYN"]]
    assert np.mean(ages >= ages.max() - 1) > 0.9, "the oldest went first"


def test_what_is_over_goes_first(full: PrivateTable) -> None:
    """Though others were not seen for longer. So many are over to the end that each bucket has
    some of them."""
    over = flows(full, OTHERS, 7 * CELLS // 16, "STATE_TIME_WAIT", 40)
    assert flood(full, over) == len(over)
    opening = flows(full, OTHERS + 100, CELLS // 32, "STATE_SYN", 12, answered=False)
    opening["seen"] -= 5
    assert flood(full, opening) == len(opening)
    more = flows(full, OTHERS + 200, CELLS // 16, "STATE_SYN", 24, answered=False)
    assert flood(full, more) == len(more)
    assert left(full, opening) == len(opening)


def test_a_close_of_which_one_side_is_seen_gives_way(full: PrivateTable) -> None:
    """Whose answers go straight to the client keeps its tuple for minutes after the client's FIN:
    many short connections would keep out all that come."""
    one_way = rings(full.enums, full.family, 7 * CELLS // 8, 1, "STATE_FIN_WAIT", 40)
    one_way["kind"], one_way["packets"] = full.enums["CELL_DSR"], 6
    one_way["seen"] = kernel_clock().beat()
    assert flood(full, one_way) == len(one_way)
    half_closed = flows(full, OTHERS, 3, "STATE_FIN_WAIT", 3)
    half_closed["seen"] -= 5
    assert flood(full, half_closed) == 3
    more = flows(full, OTHERS + 200, CELLS // 16, "STATE_SYN", 24, answered=False)
    assert flood(full, more) == len(more)
    assert left(full, half_closed) == 3


def test_established_flows_of_all_are_not_evicted(full: PrivateTable) -> None:
    """When they fill the table, who comes is refused, and that is counted."""
    refused = full.table.refused()
    opened = flood(full, flows(full, OTHERS, CELLS, "STATE_ESTABLISHED", CELLS))
    assert 0.85 * CELLS < 2 * opened <= CELLS
    late = flows(full, FLOOD, 60, "STATE_ESTABLISHED", 60)
    got = flood(full, late)
    assert full.table.refused() - refused >= 60 - got
    assert len(full.table.view()) == 2 * (opened + got)
