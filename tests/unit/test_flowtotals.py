"""What flows carry by name is told from look to look, whichever of them come and go between."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lbctl.inspect.flows import FlowRow
from lbctl.inspect.flowtotals import FlowTotals, Totals
from lbctl.model.names import PortName

WEB = PortName.parse("default/web:http/TCP/v4")


def flow(number: int, packets: int, state: str = "established") -> tuple[str, FlowRow]:
    """A flow of one of three clients, of 100 bytes a packet."""
    client = f"10.0.0.{number % 3}"
    row = FlowRow(
        service=WEB,
        protocol="TCP",
        client=f"{client}:{40000 + number}",
        address="10.96.0.1:80",
        backend="10.1.0.1:8080",
        state=state,
        kind="service",
        client_port=0,
        idle_seconds=0.0,
        packets_in=packets,
        bytes_in=100 * packets,
        packets_out=0,
        bytes_out=0,
        table="flows4",
        age_seconds=0.0,
    )
    return client, row


def test_flows_that_go_do_not_hide_what_the_others_carry() -> None:
    totals = FlowTotals()
    totals.look([flow(number, 10) for number in (0, 3, 6)])
    found = totals.look([flow(6, 14), flow(9, 5)])
    assert found == {"10.0.0.0": Totals(4, 39, 3900, 2)}


def test_a_flow_that_is_over_is_not_active() -> None:
    found = FlowTotals().look([flow(0, 9, "time-wait"), flow(3, 9, "reset"), flow(6, 9)])
    assert found["10.0.0.0"] == Totals(3, 27, 2700, 1)


def test_a_port_that_is_used_again_is_another_connection() -> None:
    totals = FlowTotals()
    totals.look([flow(0, 50)])
    assert totals.look([flow(0, 2)]) == {"10.0.0.0": Totals(2, 52, 5200, 1)}


def test_who_has_no_flow_left_is_forgotten() -> None:
    totals = FlowTotals()
    totals.look([flow(0, 50)])
    assert totals.look([]) == {}
    assert totals.look([flow(0, 1)]) == {"10.0.0.0": Totals(1, 1, 100, 1)}


def test_a_name_that_becomes_known_has_what_is_carried_under_it() -> None:
    totals = FlowTotals()
    _, row = flow(0, 50)
    _, later = flow(0, 57)
    totals.look([("10.0.0.0", row)])
    assert totals.look([("default/client", later)]) == {"default/client": Totals(0, 7, 700, 1)}


# Of each flow that is there, by its number, how many packets it has carried since the look before.
LOOKS = st.lists(st.dictionaries(st.integers(0, 8), st.integers(0, 9)), max_size=8)


@given(LOOKS)
def test_every_packet_and_every_connection_counts_once(looks: list[dict[int, int]]) -> None:
    totals, counters = FlowTotals(), dict[int, int]()
    anchors = [flow(number, 1) for number in (100, 101, 102)]  # each client has one at every look
    found = totals.look(anchors)
    packets, connections = Counter[str](found.keys()), Counter[str](found.keys())
    for look in looks:
        for number, more in look.items():
            client, _ = flow(number, 0)
            packets[client] += more
            connections[client] += number not in counters
        counters = {number: counters.get(number, 0) + more for number, more in look.items()}
        found = totals.look([*anchors, *(flow(n, counted) for n, counted in counters.items())])
        assert {name: total.packets for name, total in found.items()} == packets
        assert {name: total.connections for name, total in found.items()} == connections
        assert all(total.bytes == 100 * total.packets for total in found.values())
