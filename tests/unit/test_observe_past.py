"""Flows that began while nobody listened, and who talks to what, as the table of flows has them."""

from __future__ import annotations

import socket
import time
from typing import Any

import numpy as np

from lbctl.addresses import parse_address
from lbctl.datapath import clock, consts
from lbctl.model.names import PortName
from lbctl.observe import past
from lbctl.observe.places import Places
from lbctl.ui import talk
from lbctl.ui.talk import Edge
from tests.support.fake_cells import FakeFlowTable
from tests.support.fake_tables import FakeTables

EVER = 1 << 62
TCP = socket.IPPROTO_TCP
SERVICE, BACKEND = ("10.96.0.1", 80), ("10.1.1.2", 8080)


def begun(table: FakeFlowTable, port: int, beats_ago: int, **fields: Any) -> None:
    opened = (clock.current_beat() - beats_ago) % (1 << 32)
    table.add_flow(TCP, ("10.1.0.9", port), SERVICE, BACKEND, opened=opened, **fields)


def ports(events: np.ndarray) -> list[int]:
    return [socket.ntohs(port) for port in events["sport"].tolist()]


def test_what_is_open_in_the_order_of_its_beginning() -> None:
    table = FakeFlowTable()
    begun(table, 2, 50)
    begun(table, 1, 100)
    begun(table, 3, 1, state=consts.STATE_DATAGRAM)
    begun(table, 4, 5, state=consts.STATE_TIME_WAIT)
    begun(table, 5, 5, backend=0)
    found = past.opened([table, FakeFlowTable("6")], 0, EVER)
    assert ports(found) == [1, 2, 3]
    assert set(found["what"].tolist()) == {consts.EVENT_OPENED}
    assert found["addr"][0].tobytes() == parse_address(BACKEND[0])
    assert (np.diff(found["time"].astype(np.int64)) > 0).all()


def test_since_and_before() -> None:
    table = FakeFlowTable()
    for port in range(1, 9):
        begun(table, port, 10 * port)
    now = time.monotonic_ns()
    since, before = now - 65 * past.BEAT, now - 25 * past.BEAT
    assert ports(past.opened([table], since, before)) == [6, 5, 4, 3]


def test_one_that_began_this_very_moment_is_in_the_past() -> None:
    """Its beat began before now."""
    table = FakeFlowTable()
    begun(table, 1, 0)
    (event,) = past.opened([table], 0, EVER)
    assert time.monotonic_ns() - 2 * past.BEAT < event["time"] <= time.monotonic_ns()


def test_identities_tell_flows_apart() -> None:
    table = FakeFlowTable()
    for port in range(1, 6):
        begun(table, port, port)
    events = past.opened([table], 0, EVER)
    names = past.identities(events)
    assert len(set(names)) == 5
    again = events.copy()
    again["time"], again["packets_in"] = 7, 99
    assert past.identities(again) == names


def test_who_talks_to_what() -> None:
    tables = FakeTables()
    backend = tables.backends.records[1:2]
    backend["addr"]["w"] = np.frombuffer(parse_address(BACKEND[0]), np.uint32)
    backend["port"] = socket.htons(BACKEND[1])
    table = FakeFlowTable()
    for port in range(1, 6):
        begun(table, port, port)
    table.add_flow(TCP, ("10.1.0.7", 1), SERVICE, BACKEND)
    known = {1: PortName.parse("default/web:http/TCP/v4")}
    found = talk.edges([table], tables.backends, known.get, Places())
    assert found == [
        Edge("10.1.0.9", "default/web:http", "10.1.1.2:8080", 5),
        Edge("10.1.0.7", "default/web:http", "10.1.1.2:8080", 1),
    ]
    assert talk.edges([FakeFlowTable()], tables.backends, known.get, Places()) == []
