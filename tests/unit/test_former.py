"""Flows of 0.1.0's tables, read as flows of cells."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbctl.datapath import clock, consts, former
from lbctl.datapath.tables import Records
from tests.support import former_flows as old
from tests.support.former_flows import FormerFlows

TICK = 10_000
PORTS = ("sport", "dport", "proto")
CLIENT, SERVICE, BACKEND = ("10.0.0.9", 4000), ("10.96.0.1", 80), ("10.0.1.1", 8080)
OPEN = {"state": old.ESTABLISHED, "seen": TICK}
FIRST: dict[str, Any] = OPEN | {"service": 3, "backend": 7 | 2 << 24}


def opened(*tables: FormerFlows) -> Records:
    return former.rings([table.entries for table in tables], old.NODE_PORTS, TICK)


def address(raw: Records) -> bytes:
    """The last bytes, as both families have them."""
    return bytes(raw.tobytes()[-4:])


def tuples(flow: Records) -> list[tuple[bytes | int, ...]]:
    """Of the cells that are meant."""
    return [
        (address(cell["src"]), address(cell["dst"]), *(int(cell[n]) for n in PORTS))
        for place, cell in enumerate(flow)
        if not place or cell["kind"]
    ]


def tuples_of(keys: Records) -> list[tuple[bytes | int, ...]]:
    return [
        (address(key["src"]), address(key["dst"]), *(int(key[n]) for n in PORTS)) for key in keys
    ]


@pytest.mark.parametrize("family", [4, 6])
def test_a_connection(family: int) -> None:
    table = FormerFlows(family)
    where = (CLIENT, SERVICE, BACKEND)
    if family == 6:
        where = (("fd00::9", 4000), ("fd00:96::1", 80), ("fd00:1::1", 8080))
    table.add(*where, seen_as=61001, ack=5, reply={"ack": 6, "tick_packets": 2}, **FIRST)
    (flow,) = opened(table)
    assert tuples(flow) == tuples_of(table.keys)
    assert set(flow["state"].tolist()) == {consts.STATE_ESTABLISHED}
    for cell, value in zip(flow, table.values, strict=False):
        assert (cell["service"], cell["backend"]) == (3, 7 | 2 << 24)
        assert address(cell["addr"]) == address(value["addr"])
        for name in ("port", "client_port", "ack"):
            assert cell[name] == value[name]
    assert flow["kind"].tolist() == [0, consts.CELL_REPLY, 0, 0]
    # What was counted before is in the service's totals.
    assert flow["packets"].tolist() == [0, 2, 0, 0]


def test_the_ring_of_a_masqueraded_one() -> None:
    table = FormerFlows()
    table.add(CLIENT, SERVICE, BACKEND, seen_as=61001, node=("172.18.0.1", 61001), **FIRST)
    (flow,) = opened(table)
    masqueraded, side = consts.CELL_MASQUERADED, consts.CELL_SIDE | consts.CELL_MASQUERADED
    assert flow["kind"].tolist() == [
        masqueraded,
        masqueraded | consts.CELL_REPLY,
        side | consts.CELL_REPLY,
        side,
    ]
    assert tuples(flow) == tuples_of(table.keys[[2, 3, 0, 1]])


def test_what_is_not_whole_is_left() -> None:
    table = FormerFlows()
    table.add(CLIENT, SERVICE, BACKEND, node=("172.18.0.1", 4000), **FIRST)
    table.keys, table.values = table.keys[1:], table.values[1:]  # one of the sides
    table.put(CLIENT, ("10.96.0.2", 80), BACKEND, 4001, old.TCP, **FIRST)  # no reply entry
    table.put(BACKEND, ("10.0.0.8", 1), SERVICE, 1, old.TCP, flags=old.REPLY, **FIRST)
    assert len(opened(table)) == 0


def test_an_entry_under_the_pair_key_that_is_anothers_does_not_count() -> None:
    table = FormerFlows()
    table.add(CLIENT, SERVICE, BACKEND, **FIRST)
    table.put(CLIENT, ("10.96.0.2", 80), BACKEND, CLIENT[1], old.TCP, **FIRST)
    (flow,) = opened(table)
    assert tuples(flow)[0] == tuples_of(table.keys)[0]


def test_what_packets_said() -> None:
    table = FormerFlows()
    closing = FIRST | {"state": old.CLOSING}
    said = {"flags": old.ACKED | old.REPLY}
    table.add(CLIENT, SERVICE, BACKEND, flags=old.FIN | old.FIRST, reply=said, **closing)
    udp = FIRST | {"state": old.DATAGRAM, "proto": old.UDP}
    table.add(("10.0.0.9", 53), SERVICE, BACKEND, flags=old.REPLIED, **udp)
    table.add(("10.0.0.9", 54), SERVICE, BACKEND, flags=old.DIRECT, **udp)
    tcp, answered, direct = opened(table)
    assert tcp["state"][0] == consts.STATE_CLOSING
    assert tcp["flags"].tolist() == [
        consts.CELL_FIN | consts.CELL_FIRST,
        consts.CELL_ACKED,
        0,
        0,
    ]
    assert answered["flags"].tolist() == [0, consts.CELL_REPLIED, 0, 0]
    assert direct["kind"].tolist() == [
        consts.CELL_DIRECT,
        consts.CELL_DIRECT | consts.CELL_REPLY,
        0,
        0,
    ]
    assert not direct["service"].any()
    assert not direct["backend"].any()


def test_the_first_layout_knew_no_acknowledgements() -> None:
    table = FormerFlows(ack="peer_fin")
    closing = FIRST | {"state": old.CLOSING}
    said = {"flags": old.RST | old.ACKED | old.REPLY, "peer_fin": 77}  # 4 meant another thing
    table.add(CLIENT, SERVICE, BACKEND, flags=old.FIN, reply=said, **closing)
    (flow,) = opened(table)
    assert flow["flags"].tolist() == [consts.CELL_FIN, 0, 0, 0]
    assert not flow["ack"].any()


def test_those_of_the_nodes_own_sockets_are_told_by_their_ports() -> None:
    table = FormerFlows()
    table.add(("172.18.0.1", 40000), SERVICE, BACKEND, seen_as=64513, **FIRST)
    table.add(("172.18.0.1", 40001), SERVICE, BACKEND, seen_as=61001, **FIRST)
    kinds = [flow["kind"][:2].tolist() for flow in opened(table)]
    reply, node = consts.CELL_REPLY, consts.CELL_NODE
    assert kinds == [[node, node | reply], [0, reply]]


@pytest.mark.parametrize("age", [-2, 0, 1, 100, 80_000])
def test_ages_stay(age: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "current_beat", lambda: 50)
    table = FormerFlows()
    table.add(CLIENT, SERVICE, BACKEND, **FIRST | {"seen": (TICK - age) % 2**32})
    (flow,) = opened(table)
    beats = (50 - int(flow["seen"][0])) % 2**32
    assert clock.seconds(beats) <= max(0, age) * 2**30 / 1e9 < clock.seconds(beats + 1)


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)), unique=True, max_size=20
    ),
    st.integers(0, 40),
)
def test_whatever_table_an_entry_is_in(flows: list[tuple[int, int, int]], cut: int) -> None:
    """Entries moved between tables, and could be in both for a moment: that of the first counts."""
    table = FormerFlows()
    for number, (client, service, backend) in enumerate(flows):
        table.add((f"10.0.0.{client}", 1), (f"10.96.0.{service}", 80), (f"10.1.0.{backend}", 80),
                  seen_as=2000 + number, **FIRST)  # fmt: skip
    # The same tuple twice was never there: the later one would have been refused.
    _, kept = np.unique(table.keys, return_index=True) if len(flows) else (None, np.zeros(0, int))
    keys, values = table.keys[np.sort(kept)], table.values[np.sort(kept)]
    one, two = FormerFlows(), FormerFlows()
    one.keys, one.values = keys[:cut], values[:cut]
    two.keys, two.values = keys[max(0, cut - 2) :], values[max(0, cut - 2) :].copy()
    two.values["service"] += 100
    whole = FormerFlows()
    whole.keys, whole.values = keys, values
    assert list(map(tuples, opened(one, two))) == list(map(tuples, opened(whole)))
