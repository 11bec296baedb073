"""`lbctl flow`: which flows are listed under which filter, and which are ended."""

import contextlib
import json

import pytest
from click.testing import CliRunner

from lbctl.cli.main import command
from lbctl.datapath import clock, consts
from lbctl.inspect import load
from lbctl.inspect.flowfilter import FlowFilter, Target
from lbctl.inspect.flows import list_flows
from lbctl.inspect.names import all_names
from tests.support.cli import DNS, TCP, UDP, WEB, populate
from tests.support.fake_tables import FakeTables

ONE, TWO, RESOLVER = ("10.1.0.7", 40001), ("10.1.1.7", 40002), ("fd00:1::7", 40003)
WEB_AT, DNS_AT, WEB6_AT = ("10.96.0.1", 80), ("10.96.0.10", 53), ("fd00:96::1", 80)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> FakeTables:
    made = FakeTables()
    ids = populate(made)
    web, dns = ids[WEB], ids[DNS]
    four, six = made.flow_tables
    four.add_flow(TCP, ONE, WEB_AT, ("10.1.0.2", 8080), service=web)
    four.add_flow(TCP, TWO, WEB_AT, ("10.1.1.2", 8080), service=web, seen_as=50000,
                  state=consts.STATE_CLOSING)  # fmt: skip
    four.add_flow(UDP, ONE, DNS_AT, ("10.1.0.3", 53), service=dns, state=consts.STATE_DATAGRAM)
    six.add_flow(TCP, RESOLVER, WEB6_AT, ("fd00:1::2", 8080), service=web)
    # What is no flow.
    alone = {"src": "10.1.0.7", "dst": "10.96.0.1", "addr": "10.1.0.2"}
    four.open({**alone, "kind": consts.CELL_NOTE, "state": consts.STATE_ESTABLISHED})
    four.open({**alone, "kind": consts.CELL_FRAGMENT, "state": consts.STATE_DATAGRAM})
    four.open({**alone, "state": consts.STATE_BUSY})
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


def cells(tables: FakeTables) -> int:
    """Of flows."""
    return sum(table.rooms().used for table in tables.flow_tables) - 3


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
    assert (row.packets_in, row.bytes_in, row.packets_out, row.bytes_out) == (11, 1100, 10, 5000)
    assert row.idle_seconds < 5


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
    assert "only the first 2 are shown" in err
    assert run("list", "--limit", "4")[2] == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--client", "10.1.0"), "'10.1.0' is not an IP address"),
        (("--client", "10.1.0.7:http"), "'http' in '10.1.0.7:http' is not a port"),
        (("--backend", "10.0.0.0/33"), "longer than 32 bits"),
        (("--backend", "[fd00::1"), "is not like [fd00::1]:80"),
        (("--protocol", "icmp"), "'icmp'"),
        (("--client", "10.1.0.7", "--backend", "fd00::1"), "different address families"),
    ],
)
def test_wrong_filters_are_explained(tables: FakeTables, words: tuple[str, ...], said: str) -> None:
    code, _, err = run("list", *words)
    assert code == 2
    assert said in err


def test_an_unknown_service_is_told_apart_from_wrong_use(tables: FakeTables) -> None:
    assert run("list", "--service", "wab")[0] == 3


@pytest.mark.parametrize(
    ("kind", "backend", "said"),
    [
        (0, "10.1.0.2", "service"),
        (consts.CELL_MASQUERADED, "10.1.1.2", "masqueraded"),
        (consts.CELL_MASQUERADED, "10.1.0.9", "hairpin"),
        (consts.CELL_NODE, "10.1.0.2", "node"),
        (consts.CELL_DIRECT, "10.1.0.2", "direct"),
    ],
)
def test_kinds(tables: FakeTables, kind: int, backend: str, said: str) -> None:
    client = ("10.1.0.9", 40009)
    tables.flow_tables[0].add_flow(TCP, client, WEB_AT, (backend, 8080), kind=kind)
    (row,) = list_flows(tables, FlowFilter(client=Target.parse("10.1.0.9")))
    assert row.kind == said


def test_the_time_is_since_the_last_packet_of_either_direction(tables: FakeTables) -> None:
    client, now = ("10.1.0.9", 40009), clock.current_beat()
    tables.flow_tables[0].add_flow(TCP, client, WEB_AT, ("10.1.0.2", 8080),
                                   seen=now - 1000, opened=now - 2000,
                                   reply={"seen": now - 500})  # fmt: skip
    (row,) = list_flows(tables, FlowFilter(client=Target.parse("10.1.0.9")))
    assert clock.seconds(500) - 0.1 <= row.idle_seconds <= clock.seconds(502)
    assert clock.seconds(2000) - 0.1 <= row.age_seconds <= clock.seconds(2002)


@pytest.mark.parametrize("over", [consts.STATE_TIME_WAIT, consts.STATE_RESET])
def test_a_flow_that_is_over_is_no_load_of_an_endpoint(tables: FakeTables, over: int) -> None:
    place = WEB, "10.1.0.2:8080"
    assert load.count_flows(tables)[place] == 1
    (web,) = (number for number, port in all_names(tables.names).items() if port.text == WEB)
    tables.flow_tables[0].add_flow(TCP, ("10.1.0.9", 40009), WEB_AT, ("10.1.0.2", 8080),
                                   service=web, state=over)  # fmt: skip
    assert load.count_flows(tables)[place] == 1
    assert load.count_by_state(tables)[place] == (1, 1)


def test_flush_ends_what_matches(tables: FakeTables) -> None:
    assert cells(tables) == 8
    code, out, err = run("flush", "--client", "10.1.0.7", "--yes")
    assert (code, out, err) == (0, "", "ended 2 flows\n")
    assert cells(tables) == 4
    assert clients() == ["10.1.1.7:40002", "[fd00:1::7]:40003"]
    assert {end.why for end in tables.flow_tables[0].ended} == {consts.END_DELETED}


def test_flush_goes_by_the_state_of_the_forward_cell(tables: FakeTables) -> None:
    """What the others say is a hint, which may be late."""
    four = tables.flow_tables[0]
    four.add_flow(TCP, ("10.1.0.8", 1), WEB_AT, ("10.1.0.2", 8080),
                  reply={"state": consts.STATE_CLOSING})  # fmt: skip
    assert run("flush", "--state", "closing", "--yes")[2] == "ended 1 flow\n"
    assert "10.1.0.8:1" in clients()


def test_flush_tells_what_it_ended_not_what_ended_before(
    tables: FakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = tables.flow_tables[0]

    def someone_is_faster(*_: object, **__: object) -> bool:
        four.cells["generation"][:2] += 1
        return True

    monkeypatch.setattr("click.confirm", someone_is_faster)
    assert run("flush", "--client", "10.1.0.7")[2] == "ended 1 flow\n"


def test_flush_asks_first(tables: FakeTables) -> None:
    code, _, err = run("flush", stdin="n\n")
    assert code == 1
    assert "End 4 flows, 3 of them TCP?" in err
    assert cells(tables) == 8
    code, _, err = run("flush", stdin="y\n")
    assert code == 0
    assert cells(tables) == 0


def test_nothing_to_flush(tables: FakeTables) -> None:
    assert run("flush", "--client", "10.9.9.9") == (0, "", "no matching flows\n")
