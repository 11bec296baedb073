"""`lbctl flow`: which flows are listed under which filter, and what ending one deletes."""

import contextlib
import json
import socket

import pytest
from click.testing import CliRunner

from lbctl.cli.main import command
from lbctl.datapath import consts
from lbctl.inspect.flowfilter import FlowFilter, Target
from lbctl.inspect.flows import list_flows
from tests.support.cli import DNS, TCP, UDP, WEB, add_flow, entries, populate
from tests.support.fake_tables import FakeTables

ONE, TWO, RESOLVER = ("10.1.0.7", 40001), ("10.1.1.7", 40002), ("fd00:1::7", 40003)
WEB_AT, DNS_AT, WEB6_AT = ("10.96.0.1", 80), ("10.96.0.10", 53), ("fd00:96::1", 80)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> FakeTables:
    made = FakeTables()
    ids = populate(made)
    web, dns = ids[WEB], ids[DNS]
    add_flow(made.flows4, TCP, ONE, WEB_AT, ("10.1.0.2", 8080), service=web)
    add_flow(made.flows4, TCP, TWO, WEB_AT, ("10.1.1.2", 8080), service=web, seen_as=50000,
             state=consts.FLOW_CLOSING)  # fmt: skip
    add_flow(made.flows4_lru, UDP, ONE, DNS_AT, ("10.1.0.3", 53), service=dns,
             state=consts.FLOW_DATAGRAM)  # fmt: skip
    add_flow(made.flows6, TCP, RESOLVER, WEB6_AT, ("fd00:1::2", 8080), service=web)
    monkeypatch.setattr(
        "lbctl.cli.flow.open_instance", lambda _, readonly=True: contextlib.nullcontext(made)
    )
    return made


def run(*words: str, stdin: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(command, ["flow", *words], prog_name="lbctl", input=stdin)
    return result.exit_code, result.stdout, result.stderr


def clients(*words: str) -> list[str]:
    code, out, err = run("list", "-o", "json", *words)
    assert code == 0, err
    return sorted(row["client"] for row in json.loads(out))


def total(tables: FakeTables) -> int:
    return sum(map(entries, (tables.flows4, tables.flows4_lru, tables.flows6, tables.flows6_lru)))


def test_what_is_known_of_a_flow(tables: FakeTables) -> None:
    wanted = FlowFilter(client=Target.parse("10.1.1.7"))
    (row,) = list_flows(tables, wanted)
    assert row.service.text == WEB
    assert (row.client, row.address, row.backend) == (
        "10.1.1.7:40002",
        "10.96.0.1:80",
        "10.1.1.2:8080",
    )
    assert (row.protocol, row.state, row.kind, row.client_port) == (
        "TCP",
        "closing",
        "service",
        50000,
    )
    # Those of the current tick count too.
    assert (row.packets_in, row.bytes_in, row.packets_out, row.bytes_out) == (11, 1100, 10, 5000)
    assert row.idle_seconds < 5
    assert row.table == "flows4"


def test_the_table_has_a_line_per_flow(tables: FakeTables) -> None:
    code, out, _ = run("list")
    assert code == 0
    assert len(out.splitlines()) == 5
    assert "[fd00:1::7]:40003" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ["10.1.0.7:40001", "10.1.0.7:40001", "10.1.1.7:40002", "[fd00:1::7]:40003"]),
        (("--service", "kube-dns"), ["10.1.0.7:40001"]),
        (("--client", "10.1.0.0/24"), ["10.1.0.7:40001", "10.1.0.7:40001"]),
        (("--client", "10.1.1.7:40002"), ["10.1.1.7:40002"]),
        (("--client", "10.1.1.7:50000"), []),
        (("--client", "fd00::/16"), ["[fd00:1::7]:40003"]),
        (("--backend", "10.1.0.2:8080"), ["10.1.0.7:40001"]),
        (("--backend", "[fd00:1::2]:8080"), ["[fd00:1::7]:40003"]),
        (("--backend", "10.1.0.2:80"), []),
        (("--protocol", "udp"), ["10.1.0.7:40001"]),
        (("--state", "closing"), ["10.1.1.7:40002"]),
        (("--state", "closing", "--state", "datagram"), ["10.1.0.7:40001", "10.1.1.7:40002"]),
        (("--state", "closing", "--protocol", "udp"), []),
    ],
)
def test_filters(tables: FakeTables, words: tuple[str, ...], expected: list[str]) -> None:
    assert clients(*words) == expected


def test_a_limit_says_that_there_are_more(tables: FakeTables) -> None:
    code, out, err = run("list", "--limit", "2")
    assert code == 0
    assert len(out.splitlines()) == 3
    assert "more than 2" in err
    assert "more" not in run("list", "--limit", "4")[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--client", "10.1.0"), "'10.1.0' is not an IP address"),
        (("--client", "10.1.0.7:http"), "'http' in '10.1.0.7:http' is not a port"),
        (("--backend", "10.0.0.0/33"), "longer than 32 bits"),
        (("--backend", "[fd00::1"), "is not like [fd00::1]:80"),
        (("--protocol", "icmp"), "'icmp'"),
        (("--client", "10.1.0.7", "--backend", "fd00::1"), "two address families"),
    ],
)
def test_wrong_filters_are_explained(tables: FakeTables, words: tuple[str, ...], said: str) -> None:
    code, _, err = run("list", *words)
    assert code == 2
    assert said in err


def test_an_unknown_service_is_told_apart_from_wrong_use(tables: FakeTables) -> None:
    assert run("list", "--service", "wab")[0] == 3


def test_flush_deletes_both_directions_of_what_matches(tables: FakeTables) -> None:
    assert total(tables) == 8
    code, out, err = run("flush", "--client", "10.1.0.7", "--yes")
    assert (code, out, err) == (0, "", "ended 2 flows\n")
    assert total(tables) == 4
    assert clients() == ["10.1.1.7:40002", "[fd00:1::7]:40003"]


def test_flush_by_state_goes_by_the_forward_entry(tables: FakeTables) -> None:
    add_flow(tables.flows4, TCP, ("10.1.0.8", 1), WEB_AT, ("10.1.0.2", 8080), service=0,
             halves="forward")  # fmt: skip
    add_flow(tables.flows4, TCP, ("10.1.0.8", 1), WEB_AT, ("10.1.0.2", 8080), service=0,
             halves="reply", state=consts.FLOW_CLOSING)  # fmt: skip
    assert run("flush", "--state", "closing", "--yes")[2] == "ended 1 flow\n"
    assert "10.1.0.8:1" in clients()
    assert total(tables) == 8


def test_flush_ends_what_is_left_of_a_flow(tables: FakeTables) -> None:
    add_flow(tables.flows4, TCP, ("10.1.0.9", 1), WEB_AT, ("10.1.0.2", 8080), service=0,
             state=consts.FLOW_TIME_WAIT, halves="reply")  # fmt: skip
    assert run("flush", "--client", "10.1.0.9", "--yes")[2] == "ended 1 flow\n"
    assert total(tables) == 8


def test_flush_spares_an_entry_that_only_looks_like_the_partner(tables: FakeTables) -> None:
    """Another flow of the same client and backend, through another service."""
    add_flow(tables.flows4, TCP, ("10.1.0.8", 7), WEB_AT, ("10.1.0.2", 8080), service=1,
             halves="forward")  # fmt: skip
    add_flow(tables.flows4, TCP, ("10.1.0.8", 7), ("10.96.0.77", 80), ("10.1.0.2", 8080),
             service=2, halves="reply")  # fmt: skip
    (row,) = list_flows(tables, FlowFilter(client=Target.parse("10.1.0.8")))
    assert (row.packets_out, row.bytes_out) == (0, 0)
    before = total(tables)
    run("flush", "--client", "10.1.0.8", "--state", "established", "--yes")
    assert total(tables) == before - 2  # each counted as what is left of its own flow


def test_flush_of_a_hairpin_flow_takes_its_helpers_along(tables: FakeTables) -> None:
    pod, seen_as, node = ("10.1.0.2", 45000), 61000, ("192.0.2.1", 61000)
    add_flow(tables.flows4, TCP, pod, WEB_AT, ("10.1.0.2", 8080), service=1, seen_as=seen_as,
             flags=consts.FLOW_MASQUERADED)  # fmt: skip
    spec = tables.flows4.spec
    helper = {"state": consts.FLOW_SIDE, "client_port": socket.htons(8080)}
    raw, node_raw = socket.inet_aton(pod[0]), socket.inet_aton(node[0])
    np_, bp = socket.htons(seen_as), socket.htons(8080)
    tables.flows4.put(
        spec.key.pack(src=raw, sport=np_, dst=raw, dport=bp, proto=TCP),
        spec.value.pack(addr=node_raw, port=np_, flags=consts.FLOW_REPLY, **helper),
    )
    tables.flows4.put(
        spec.key.pack(src=raw, sport=bp, dst=node_raw, dport=np_, proto=TCP),
        spec.value.pack(addr=raw, port=np_, **helper),
    )
    assert total(tables) == 12
    assert clients("--client", "10.1.0.2") == ["10.1.0.2:45000"]
    assert run("flush", "--client", "10.1.0.2", "--yes")[2] == "ended 1 flow\n"
    assert total(tables) == 8


def test_flush_asks_first(tables: FakeTables) -> None:
    code, _, err = run("flush", stdin="n\n")
    assert code == 1
    assert "End 4 flows, 3 of them TCP?" in err
    assert total(tables) == 8
    code, _, err = run("flush", stdin="y\n")
    assert code == 0
    assert total(tables) == 0


def test_nothing_to_flush(tables: FakeTables) -> None:
    assert run("flush", "--client", "10.9.9.9") == (0, "", "no such flows\n")
