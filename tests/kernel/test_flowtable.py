"""Python's side of the table of flows: what it opens is found, read back whole, and ended once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ebpf.flowevents import read_events
from ebpf.kernel.clock import kernel_clock
from ebpf.maps.base import Records
from ebpf.maps.ring import Ring
from tests.kernel.support.flow_tables import PrivateTable, rings, table_bundle

pytestmark = pytest.mark.kernel
WRITTEN = (
    "src", "dst", "sport", "dport", "proto", "addr", "port", "client_port", "kind", "state",
    "flags", "seen", "packets", "ack", "bytes", "backend", "service",
)  # fmt: skip


@pytest.fixture(scope="module", params=["4", "6"])
def private(request: pytest.FixtureRequest) -> Iterator[PrivateTable]:
    made = PrivateTable(table_bundle(request.param), request.param, 512)
    yield made
    made.close()


@pytest.fixture
def table(private: PrivateTable) -> Iterator[PrivateTable]:
    """Empty, and found empty again at the end."""
    yield private
    seen = private.table.view()
    private.table.end(seen["place"], seen["generation"], 0)
    assert private.table.rooms().used == 0
    for name in ("backend_live", f"held{private.family}"):
        assert not private.records(name).any(), name
    private.records("service_counters")[:] = np.zeros(1, private.records("service_counters").dtype)


def rows(cells: Records) -> Records:
    """What was written, as bytes, sorted."""
    return np.sort(np.array([b"".join(c[name].tobytes() for name in WRITTEN) for c in cells]))


@pytest.mark.parametrize("length", [2, 4])
def test_what_is_opened_is_read_back(table: PrivateTable, length: int) -> None:
    wanted = rings(table.enums, table.family, 100, length)
    wanted["seen"] = np.arange(wanted.size).reshape(wanted.shape)
    wanted["ack"], wanted["flags"][:, 1] = wanted["seen"] + 77, table.enums["CELL_REPLIED"]
    assert table.table.open(wanted) == 100
    found = table.table.view()
    assert np.array_equal(rows(found), rows(wanted.reshape(-1)))
    by_place = {int(cell["place"]): cell for cell in found}
    for cell in found:
        ring, at = [cell], by_place[int(cell["next"])]
        while at["place"] != cell["place"]:
            ring.append(at)
            at = by_place[int(at["next"])]
        assert len(ring) == length
        assert len({int(c["generation"]) for c in ring}) == 1
    assert int(table.records("backend_live")[5]) == 100
    assert int(table.records("service_counters")["live"][7]) == 100
    assert int(table.records(f"held{table.family}").sum()) == 100 * length


def test_a_flow_is_ended_once(table: PrivateTable) -> None:
    """By any of its cells, all of them listed."""
    table.table.open(rings(table.enums, table.family, 300, 4))
    found = table.table.view()
    assert table.table.end(found["place"], found["generation"], 0) == 300
    counters = table.records("service_counters")[7]
    assert int(counters["packets_in"]) == int(counters["packets_out"]) == 3 * 300
    assert int(counters["bytes_in"]) == int(counters["bytes_out"]) == 300 * 300
    assert int(counters["live"]) == 0


def test_another_generation_is_left_alone(table: PrivateTable) -> None:
    table.table.open(rings(table.enums, table.family, 50))
    found = table.table.view()
    assert table.table.end(found["place"], found["generation"] + 1, 0) == 0
    assert len(table.table.view()) == 100


def test_a_tuple_that_is_taken_is_not_opened_again(table: PrivateTable) -> None:
    """And nothing is left of what else the second flow had reserved."""
    wanted = rings(table.enums, table.family, 40)
    assert table.table.open(wanted) == 40
    again = rings(table.enums, table.family, 40, 4)
    assert table.table.open(again) == 0
    assert len(table.table.view(least=table.enums["STATE_CLAIMED"])) == 80
    assert table.table.rooms().used == 80


def test_an_over_flow_is_nobodys_connection(table: PrivateTable) -> None:
    table.table.open(rings(table.enums, table.family, 40, state="STATE_TIME_WAIT"))
    assert int(table.records("backend_live")[5]) == 0
    assert int(table.records(f"held{table.family}").sum()) == 80


def test_an_end_is_an_event_for_who_listens(table: PrivateTable) -> None:
    """And none while nobody does."""
    ring = table.maps["flow_events"]
    assert isinstance(ring, Ring)
    wanted = rings(table.enums, table.family, 3, 4)
    wanted["seen"], wanted["seen"][:, 1] = 0x12345678, 0x12345699
    for listening, told in ((0, 0), (60, 3), (-1, 0)):
        listen(table, listening)
        table.table.open(wanted)
        found = table.table.view()
        assert set(found["opened"].tolist()) == {0x12345678}
        assert table.table.end(found["place"], found["generation"], table.enums["END_IDLE"]) == 3
        events = read_events(ring)
        assert len(events) == told
        if told:
            check_events(table, np.sort(events, order="sport"), wanted[:, 0])
    assert not table.records("cpus")["unheard"].any()


def listen(table: PrivateTable, beats: int) -> None:
    """Somebody does for so long; 0: nobody ever did."""
    until = (kernel_clock().beat() + beats) % (1 << 32)
    table.records("config")["events_until"] = until if beats else 0


def check_events(table: PrivateTable, events: Records, forward: Records) -> None:
    for name in ("src", "dst", "addr", "sport", "dport", "port", "proto", "backend", "service"):
        assert np.array_equal(events[name], forward[name]), name
    for name, value in (
        ("packets_in", 3), ("bytes_in", 300), ("packets_out", 3), ("bytes_out", 300),
        ("opened", 0x12345678), ("seen", 0x12345699), ("why", table.enums["END_IDLE"]),
        ("what", table.enums["EVENT_ENDED"]), ("process", 0),
        ("kind", table.enums["CELL_MASQUERADED"]),
    ):  # fmt: skip
        assert set(events[name].tolist()) == {value}, name


def test_ends_that_nobody_reads_in_time_are_counted(table: PrivateTable) -> None:
    listen(table, 60)
    table.table.open(rings(table.enums, table.family, 900))
    found = table.table.view()
    table.table.end(found["place"], found["generation"], 0)
    listen(table, 0)
    ring = table.maps["flow_events"]
    assert isinstance(ring, Ring)
    told, unheard = len(read_events(ring)), int(table.records("cpus")["unheard"].sum())
    assert told + unheard == 900
    assert unheard
    table.records("cpus")["unheard"] = 0
