"""Events as people read them, and which of them are meant."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf.flowevents import EVENT
from ebpf.maps.base import Records
from lbctl.addresses import parse_address
from lbctl.datapath import consts
from lbctl.datapath.reasons import ENDINGS, VERDICTS, ending_names
from lbctl.inspect.flowfilter import Target
from lbctl.model.names import PortName
from lbctl.observe.eventfilter import EventFilter, known_reasons
from lbctl.observe.events import EventRow, Names, Reader
from lbctl.observe.places import Places
from lbctl.sources.targets import Target as Pod

ENUMS = consts._C
WEB = PortName.parse("default/web:http/TCP/v4")
CLIENT, SERVICE, BACKEND = "10.1.0.9", "10.96.0.1", "10.1.1.2"


def event(**values: Any) -> Records:
    made = np.zeros(1, EVENT)
    defaults = {
        "src": CLIENT, "dst": SERVICE, "addr": BACKEND, "sport": 40000, "dport": 80, "port": 8080,
        "proto": 6, "service": 7, "backend": 5,
    }  # fmt: skip
    for name, value in {**defaults, **values}.items():
        if name in ("src", "dst", "addr"):
            made[name] = np.frombuffer(parse_address(value), np.uint8)
        else:
            made[name] = socket.htons(value) if name.endswith("port") else value
    return made


def reader(places: Places | None = None) -> Reader:
    return Reader(ENUMS, Names(lambda: {7: WEB}), places or Places())


def row(records: Records, places: Places | None = None) -> EventRow:
    (found,) = reader(places).rows(records)
    return found


def pods() -> Places:
    made = Places(
        "node1",
        frozenset({parse_address("192.0.2.1")}),
        lambda: {
            parse_address(BACKEND): Pod("default/web-1", "node2"),
        },
    )
    made.refresh()
    return made


def test_a_new_flow() -> None:
    found = row(event(what=consts.EVENT_OPENED), pods())
    assert (found.verdict, found.reason, found.protocol) == ("opened", "", "TCP")
    assert found.service == WEB
    assert found.client.text == "10.1.0.9:40000"
    assert found.address == "10.96.0.1:80"
    assert found.backend
    assert (found.backend.text, found.backend.endpoint) == ("default/web-1:8080", "10.1.1.2:8080")
    assert found.backend.node == "node2"


def test_an_end() -> None:
    found = row(
        event(what=consts.EVENT_ENDED, why=ENUMS["END_IDLE"], opened=0xFFFFFFFF, seen=9, bytes_in=5)
    )
    assert (found.verdict, found.reason) == ("ended", "idle")
    assert found.explanation == ENDINGS["idle"]
    assert found.seconds > 0, "beats wrap"
    assert found.bytes_in == 5


@pytest.mark.parametrize("reason", [*VERDICTS["refused"], *VERDICTS["dropped"]])
def test_what_goes_no_further(reason: str) -> None:
    records = event(what=consts.EVENT_TURNED_AWAY, why=ENUMS[f"REASON_{reason.upper()}"])
    found = row(records)
    assert found.reason == reason
    assert reason in VERDICTS[found.verdict]
    assert found.explanation
    assert found.backend is None
    chosen = EventFilter(verdicts=(found.verdict,), reasons=(reason,)).chosen(records, ENUMS)
    assert len(chosen) == 1


def test_a_socket_of_the_node() -> None:
    found = row(event(src="0.0.0.0", sport=0, process=77), pods())
    assert found.client.text == "process 77"
    assert found.client.node == "node1"
    assert found.kind == "socket"


def test_what_is_nobodys() -> None:
    assert row(event(service=0, what=consts.EVENT_TURNED_AWAY)).service is None
    unknown = row(event(service=99)).service
    assert unknown
    assert "99" in unknown.label


def test_every_ending_is_explained() -> None:
    assert set(ENDINGS) == set(ending_names(ENUMS).values())
    assert set(ENDINGS) < set(known_reasons())


def test_names_are_read_anew_when_they_may_be_others() -> None:
    now, known = 0.0, {1: WEB}
    found = Names(lambda: dict(known), lambda: now)
    assert found.of(1) == WEB
    known[2] = other = PortName.parse("default/other/TCP/v4")
    now = 2.0
    assert found.of(2) == other
    known[1] = other
    assert found.of(1) == WEB
    now = 20.0
    assert found.of(1) == other


def test_names_of_pods_are_read_again_after_a_while_if_one_was_missed() -> None:
    now, reads = 0.0, 0

    def read() -> dict[bytes, Pod]:
        nonlocal reads
        reads += 1
        return {parse_address(BACKEND): Pod("default/web-1", "node2")}

    places = Places("node1", frozenset(), read, lambda: now)
    places.refresh()
    places.named(BACKEND)
    now = 100.0
    places.refresh()
    assert reads == 1
    places.named(CLIENT)
    places.refresh()
    places.named(CLIENT)
    places.refresh()
    assert reads == 2


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (EventFilter(), True),
        (EventFilter(address=Target.parse("10.1.0.0/24")), True),
        (EventFilter(address=Target.parse("10.96.0.1:80")), True),
        (EventFilter(address=Target.parse("10.96.0.1:8080")), False),
        (EventFilter(address=Target.parse("fd00::/8")), False),
        (EventFilter(port=8080), True),
        (EventFilter(port=81), False),
        (EventFilter(protocol=17), False),
        (EventFilter(verdicts=("opened",)), True),
        (EventFilter(verdicts=("ended", "dropped")), False),
        (EventFilter(reasons=("closed",)), False),
        (EventFilter(services=("web",)), True),
        (EventFilter(services=("other", "default/web:http")), True),
        (EventFilter(services=("default/web:https",)), False),
        (EventFilter(pods=("web-1",)), True),
        (EventFilter(pods=("other/web-1",)), False),
        (EventFilter(nodes=("node2",)), True),
        (EventFilter(nodes=("node1",)), False),
    ],
)
def test_filters(wanted: EventFilter, matches: bool) -> None:
    records = wanted.chosen(event(), ENUMS)
    found = [r for r in reader(pods()).rows(records) if wanted.matches(r)]
    assert bool(found) == matches


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=16))))
def test_nothing_that_a_ring_may_hold_is_unreadable(values: list[tuple[int, int, bytes]]) -> None:
    records = np.zeros(len(values), EVENT)
    for at, (what, why, raw) in enumerate(values):
        records["what"][at], records["why"][at] = what, why
        records["src"][at] = np.frombuffer(raw.ljust(16, b"\0"), np.uint8)
        records["seen"][at] = int.from_bytes(raw[:4].ljust(4, b"\xff"), "big")
    wanted = EventFilter(verdicts=("dropped",), reasons=("malformed",))
    assert len(list(reader().rows(records))) == len(values)
    assert len(wanted.chosen(records, ENUMS)) <= len(values)
