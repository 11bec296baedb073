"""The sweep: which flows it ends, what it counts, and what it says is still referred to."""

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from lbctl.addresses import parse_address
from lbctl.datapath import consts
from lbctl.datapath import flows as flow_formulas
from lbctl.program import config
from lbctl.reconcile import sweep
from lbctl.reconcile.sweep import Sweep, Swept
from lbctl.resolve.node import NodeFacts
from tests.support.fake_tables import FakeHash, FakeTables

TCP, UDP = 6, 17
NOW = 100_000


class Flows:
    """Builds flow entries the way bpf_src/connect.h and masquerade.h do."""

    def __init__(self, tables: FakeTables, family: int = 4) -> None:
        self.tables = tables
        self.family = family

    def table(self, proto: int) -> FakeHash:
        name = f"flows{self.family}" + ("_lru" if proto != TCP else "")
        found: FakeHash = getattr(self.tables, name)
        return found

    def address(self, text: str) -> bytes | int:
        raw = parse_address(text)
        return raw if self.family == 6 else int.from_bytes(raw[12:], "little")

    def put(
        self,
        source: tuple[str, int],
        to: tuple[str, int],
        becomes: tuple[str, int],
        other_port: int,
        *,
        proto: int = TCP,
        **values: int,
    ) -> bytes:
        table = self.table(proto)
        key = table.spec.key.pack(
            src=self.address(source[0]),
            sport=socket.htons(source[1]),
            dst=self.address(to[0]),
            dport=socket.htons(to[1]),
            proto=proto,
        )
        fields = {"state": consts.FLOW_ESTABLISHED, "seen": NOW, "service": 1, "backend": 1}
        value = table.spec.value.pack(
            addr=self.address(becomes[0]),
            port=socket.htons(becomes[1]),
            client_port=socket.htons(other_port),
            **(fields | values),
        )
        table.entries[key] = value
        return key

    def pair(
        self,
        client_port: int = 4000,
        *,
        proto: int = TCP,
        forward_age: int = 0,
        reply_age: int = 0,
        flags: int = 0,
        **values: int,
    ) -> tuple[bytes, bytes]:
        """A flow client -> service -> backend."""
        where = ("10.0.0.9", "10.96.0.1", "10.0.1.1")
        if self.family == 6:
            where = ("fd00::9", "fd00:96::1", "fd00:1::1")
        client, service, backend = where
        forward = self.put(
            (client, client_port), (service, 80), (backend, 8080), client_port,
            proto=proto, flags=flags, seen=NOW - forward_age, **values,
        )  # fmt: skip
        reply = self.put(
            (backend, 8080), (client, client_port), (service, 80), client_port,
            proto=proto, flags=flags | consts.FLOW_REPLY, seen=NOW - reply_age, **values,
        )  # fmt: skip
        return forward, reply


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> FakeTables:
    made = FakeTables()
    config.store(made.config, NodeFacts("n"), config.DataPathSettings(False, 4096))
    monkeypatch.setattr(sweep, "current_tick", lambda: NOW)
    return made


def run(tables: FakeTables) -> Swept:
    *steps, found = Sweep(tables).run(began=5.0)
    assert all(step is None for step in steps)
    assert found is not None
    assert found.began == 5.0
    return found


def limit(name: str) -> int:
    return consts.ticks(config.TIMEOUTS[name])


STATES = {
    consts.FLOW_SYN: "syn_timeout",
    consts.FLOW_ESTABLISHED: "established_timeout",
    consts.FLOW_CLOSING: "closing_timeout",
    consts.FLOW_RESET: "reset_timeout",
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("state", STATES)
def test_a_tcp_flow_ends_when_both_directions_are_idle(
    tables: FakeTables, state: int, family: int
) -> None:
    flows, age = Flows(tables, family), limit(STATES[state])
    table = flows.table(TCP)
    flows.pair(1, state=state, forward_age=age, reply_age=age)
    flows.pair(2, state=state, forward_age=age + 1, reply_age=age)
    flows.pair(3, state=state, forward_age=age, reply_age=age + 1)
    over = flows.pair(4, state=state, forward_age=age + 1, reply_age=age + 1)
    found = run(tables)
    assert found.ended == 2
    assert len(table.entries) == 6
    assert not set(over) & table.entries.keys()
    assert found.entries[f"flows{family}"] == 6


def test_a_close_that_nobody_completes_ends_in_minutes(tables: FakeTables) -> None:
    """Whatever is configured for the half closed."""
    flows, age = Flows(tables), consts.FIN_WAIT_TICKS
    for number, extra in enumerate((0, 1), start=1):
        flows.pair(number, state=consts.FLOW_FIN_WAIT, forward_age=age + 1, reply_age=age + extra)
    assert run(tables).ended == 2
    assert age * (1 << consts.TICK_SHIFT) / 1e9 == pytest.approx(180, rel=0.05)


def test_udp_flows_end_too_later_if_the_backend_answered(tables: FakeTables) -> None:
    flows, table = Flows(tables), tables.flows4_lru
    age = limit("datagram_timeout") + 1
    state = consts.FLOW_DATAGRAM
    flows.pair(1, proto=UDP, state=state, forward_age=age, reply_age=age)
    answered = flows.pair(
        2, proto=UDP, state=state, forward_age=age, reply_age=age, flags=consts.FLOW_REPLIED
    )
    run(tables)
    assert set(table.entries) == set(answered)
    tables.config.records["datagram_stream_timeout"] = age - 1
    run(tables)
    assert not table.entries


def test_an_entry_seen_after_the_clock_was_read_is_not_old(tables: FakeTables) -> None:
    Flows(tables).pair(forward_age=-3, reply_age=-3, state=consts.FLOW_SYN)
    assert run(tables).ended == 0


def test_ticks_may_wrap(tables: FakeTables, monkeypatch: pytest.MonkeyPatch) -> None:
    flows = Flows(tables)
    flows.put(("10.0.0.9", 1), ("10.96.0.1", 80), ("10.0.1.1", 80), 1, seen=2**32 - 5,
              state=consts.FLOW_SYN)  # fmt: skip
    monkeypatch.setattr(sweep, "current_tick", lambda: 2**32 + 10)
    assert run(tables).ended == 0
    monkeypatch.setattr(sweep, "current_tick", lambda: 2**32 + 100)
    assert run(tables).ended == 1


def test_an_entry_under_the_pair_key_that_is_anothers_does_not_count(tables: FakeTables) -> None:
    """TIME_WAIT left the reply entry; its ports now serve another service's connection."""
    flows = Flows(tables)
    age = limit("time_wait_timeout") + 1
    left = flows.put(
        ("10.0.1.1", 8080), ("10.0.0.9", 4000), ("10.96.0.1", 80), 4000,
        state=consts.FLOW_TIME_WAIT, flags=consts.FLOW_REPLY, seen=NOW - age,
    )  # fmt: skip
    other = flows.put(("10.0.0.9", 4000), ("10.96.0.1", 80), ("10.0.1.7", 8080), 4000)
    found = run(tables)
    assert found.ended == 1
    assert set(tables.flows4.entries) == {other}
    assert left not in tables.flows4.entries


def test_a_partner_in_the_other_table_counts(tables: FakeTables) -> None:
    flows, age = Flows(tables), limit("syn_timeout") + 1
    forward, reply = flows.pair(state=consts.FLOW_SYN, forward_age=age)
    tables.flows4_lru.entries[reply] = tables.flows4.entries.pop(reply)
    assert run(tables).ended == 0
    flows.pair(state=consts.FLOW_SYN, forward_age=age, reply_age=age)
    tables.flows4_lru.entries[reply] = tables.flows4.entries.pop(reply)
    assert run(tables).ended == 2
    del forward


def test_side_entries_live_as_long_as_their_flow(tables: FakeTables) -> None:
    flows, age = Flows(tables), limit("established_timeout") - 1
    pod, node, service = "10.0.0.9", "172.18.0.1", "10.96.0.1"
    old = {"seen": NOW - age}
    flows.put((pod, 4000), (service, 80), (pod, 80), 61001, flags=consts.FLOW_MASQUERADED, **old)
    reply = flows.put(
        (pod, 80), (pod, 61001), (service, 80), 4000,
        flags=consts.FLOW_MASQUERADED | consts.FLOW_REPLY, **old,
    )  # fmt: skip
    side = {"state": consts.FLOW_SIDE, "backend": 0} | old
    flows.put((pod, 61001), (pod, 80), (node, 61001), 80, flags=consts.FLOW_REPLY, **side)
    flows.put((pod, 80), (node, 61001), (pod, 61001), 80, **side)
    found = run(tables)
    assert found.ended == 0
    del tables.flows4.entries[reply]
    assert run(tables).ended == 2
    assert len(tables.flows4.entries) == 1  # the forward entry has its own time


def test_what_was_not_yet_counted_goes_to_the_service(tables: FakeTables) -> None:
    flows, age = Flows(tables), limit("reset_timeout") + 1
    flows.pair(1, state=consts.FLOW_RESET, forward_age=age, reply_age=age,
               tick_packets=3, tick_bytes=300, service=7)  # fmt: skip
    flows.pair(2, state=consts.FLOW_RESET, forward_age=age, reply_age=age,
               tick_packets=9, tick_bytes=900, service=7, flags=consts.FLOW_DIRECT)  # fmt: skip
    flows.pair(3, tick_packets=5, service=7)
    run(tables)
    row = tables.service_counters.records[7]
    assert [int(row[n]) for n in ("packets_in", "bytes_in", "packets_out", "bytes_out")] == [
        3,
        300,
        3,
        300,
    ]


def test_it_says_what_flows_refer_to(tables: FakeTables) -> None:
    flows = Flows(tables)
    flows.pair(1, service=5, backend=17 | 3 << consts_generation_shift())
    flows.pair(2, proto=UDP, service=6, backend=18, state=consts.FLOW_DATAGRAM)
    old = limit("reset_timeout") + 1
    flows.pair(3, service=9, backend=19, state=consts.FLOW_RESET, forward_age=old, reply_age=old)
    flows.pair(4, service=60_000, backend=0xFFFFFF)  # of no map entry: ignored
    found = run(tables)
    assert np.flatnonzero(found.services).tolist() == [5, 6]
    assert np.flatnonzero(found.backends).tolist() == [17, 18]


def consts_generation_shift() -> int:
    return consts.BACKEND_ID_MASK.bit_length()


def test_the_count_of_tcp_entries_is_set_right(tables: FakeTables) -> None:
    flows, old = Flows(tables), limit("reset_timeout") + 1
    flows.pair(1)
    flows.pair(2, state=consts.FLOW_RESET, forward_age=old, reply_age=old)
    state = tables.table_state.records
    state["tcp_entries4"] = 4
    run(tables)
    assert state["tcp_entries4"][0] == 2
    state["tcp_entries4"] = 900  # after a crash, or lost increments
    run(tables)
    assert state["tcp_entries4"][0] == 2
    state["tcp_entries4"] = 0
    run(tables)
    assert state["tcp_entries4"][0] == 2


def test_overflowed_and_direct_are_cleared_when_none_is_left(tables: FakeTables) -> None:
    flows, state = Flows(tables), tables.table_state.records
    state["overflowed4"] = state["direct4"] = 1
    forward, _ = flows.pair(1, flags=consts.FLOW_DIRECT)
    tables.flows4_lru.entries[forward] = tables.flows4.entries.pop(forward)
    run(tables)
    assert (state["overflowed4"][0], state["direct4"][0]) == (1, 1)
    tables.flows4.entries.clear()
    tables.flows4_lru.entries.clear()
    run(tables)
    assert (state["overflowed4"][0], state["direct4"][0]) == (0, 0)


def test_notes_of_direct_conversations_are_no_overflow(tables: FakeTables) -> None:
    """They are in the same table, but no packet is translated by them."""
    flows, state = Flows(tables), tables.table_state.records
    _, note = flows.pair(1, flags=consts.FLOW_DIRECT)
    entry = tables.flows4.entries.pop(note)
    tables.flows4.entries.clear()
    tables.flows4_lru.entries[note] = entry
    run(tables)
    names = ("overflowed4", "direct4", "notes4")
    assert [state[name][0] for name in names] == [0, 0, 0]
    tables.flows4_lru.entries.clear()
    run(tables)
    assert [state[name][0] for name in names] == [0, 0, 1]
    tables.flows4_lru.entries[note] = entry  # and one that was missed
    run(tables)
    assert state["notes4"][0] == 0


def test_they_stay_if_a_program_sets_them_meanwhile(tables: FakeTables) -> None:
    state = tables.table_state.records
    state["overflowed4"] = state["direct4"] = 1
    Flows(tables).pair(1)
    steps = Sweep(tables).run(0.0)
    next(steps)
    state["overflowed4"] = state["direct4"] = 1  # behind the sweep's back
    list(steps)
    assert (state["overflowed4"][0], state["direct4"][0]) == (1, 1)


def test_missed_direct_entries_are_found_again(tables: FakeTables) -> None:
    Flows(tables).pair(1, flags=consts.FLOW_DIRECT)
    run(tables)
    assert tables.table_state.records["direct4"][0] == 1


def test_a_connection_that_takes_the_entry_meanwhile_is_spared(
    tables: FakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = limit("reset_timeout") + 1
    forward, _ = Flows(tables).pair(state=consts.FLOW_RESET, forward_age=old, reply_age=old)
    table = tables.flows4
    fresh = table.spec.value.pack(seen=NOW, state=consts.FLOW_SYN, service=3)
    read = table.batches

    def batches() -> Iterator[object]:
        for batch in read():
            table.entries[forward] = fresh
            yield batch

    monkeypatch.setattr(table, "batches", batches)
    run(tables)
    assert table.entries[forward] == fresh


def test_steps_are_short(tables: FakeTables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "STEP_ENTRIES", 4)
    tables.flows4.batch = 1000
    flows, old = Flows(tables), limit("reset_timeout") + 1
    for port in range(50):
        flows.pair(port, state=consts.FLOW_RESET, forward_age=old, reply_age=old)
    reads = 0
    get = tables.flows4.get

    def counted(key: bytes) -> bytes | None:
        nonlocal reads
        reads += 1
        return get(key)

    monkeypatch.setattr(tables.flows4, "get", counted)
    most = before = 0
    for _ in Sweep(tables).run(0.0):
        most, before = max(most, reads - before), reads
    assert not tables.flows4.entries
    assert 0 < most <= 4 * 4


@pytest.mark.parametrize("family", [4, 6])
def test_entries_are_taken_with_the_gaps_between_their_fields(
    tables: FakeTables, family: int
) -> None:
    """What is compared with the map byte for byte must not have lost any: an entry that differed
    in a gap was never deleted."""
    record = Flows(tables, family).table(TCP).spec.value
    raw = np.arange(1000 * record.size, dtype=np.uint64).astype(np.uint8) | 1
    which = np.arange(0, 1000, 3)
    taken = flow_formulas.take(raw.view(record.dtype), which)
    assert taken.tobytes() == raw.reshape(1000, record.size)[which].tobytes()
    assert len(taken) == len(which)
