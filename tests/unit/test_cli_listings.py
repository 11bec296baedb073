"""`lbctl service` and `lbctl backend` over maps without a kernel."""

import contextlib
import itertools
import json
import re
import socket
from typing import Any

import pytest
from click.testing import CliRunner

from lbctl.addresses import parse_prefix
from lbctl.cli.main import command
from lbctl.datapath import consts
from lbctl.errors import NotFound
from lbctl.inspect import backends, names, services
from lbctl.model.names import PortName
from lbctl.program import readback, writes
from lbctl.resolve.ports import FrontendKind
from tests.support.cli import DNS, EMPTY, TCP, WEB, WEB6, populate, port
from tests.support.fake_tables import FakeTables


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> FakeTables:
    made = FakeTables()
    populate(made)
    for module in ("service", "backend"):
        monkeypatch.setattr(
            f"lbctl.cli.{module}.open_instance", lambda _: contextlib.nullcontext(made)
        )
    return made


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(command, words, prog_name="lbctl")
    return result.exit_code, result.stdout, result.stderr


def texts(rows: list[services.ServiceRow]) -> list[str]:
    return [row.name.text for row in rows]


def test_the_table_of_services(tables: FakeTables) -> None:
    code, out, _ = run("service", "list")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:6] == ["NAMESPACE", "SERVICE", "PROTO", "ADDRESSES", "BACKENDS", "LOCAL"]
    web = next(line for line in lines if line[1] == "web:http" and "10.96" in line[3])
    assert web[3:] == ["10.96.0.1:80,192.0.2.1:30080", "2", "1", "0", "3", "50", "198K"]
    assert len(lines) == 5


def test_one_namespace(tables: FakeTables) -> None:
    assert texts(services.list_services(tables, "kube-system")) == [DNS]
    code, out, err = run("service", "list", "-n", "nowhere")
    assert (code, out) == (0, "")
    assert "no services in namespace nowhere" in err


def test_what_is_known_of_a_service(tables: FakeTables) -> None:
    row = next(row for row in services.list_services(tables) if row.name.text == WEB)
    assert [(a.endpoint, a.kinds) for a in row.addresses] == [
        ("10.96.0.1:80", ("ClusterIP",)),
        ("192.0.2.1:30080", ("NodePort",)),
    ]
    assert (row.internal_policy, row.external_policy) == ("Cluster", "Local")
    assert row.affinity_seconds == pytest.approx(10800, abs=2)
    assert (row.cluster, row.local, row.backends) == (2, 1, ())
    assert row.counters == services.Counters(3, 30, 3000, 20, 200_000, 0)


def test_a_removed_service_is_not_listed_though_its_name_rests() -> None:
    tables = FakeTables()
    populate(tables, WEB)
    assert len(names.all_names(tables.names)) == 4
    assert texts(services.list_services(tables)) == [EMPTY, WEB6, DNS]
    with pytest.raises(NotFound, match="being removed"):
        services.show(tables, WEB)


def test_show_prints_backends_and_traffic(tables: FakeTables) -> None:
    code, out, _ = run("service", "show", "default/web")
    assert code == 0
    first, second = out.split("\n\n")
    assert first.splitlines()[0] == "default/web:http  TCP, IPv4"
    assert "10.1.0.2:8080  this node" in first
    assert "10.1.1.2:8080  another node" in first
    assert "3 connections" in first
    assert "[fd00:1::2]:8080  this node" in second


def test_show_says_what_happens_without_backends(tables: FakeTables) -> None:
    assert "none: traffic is refused" in run("service", "show", "empty")[1]


def test_show_says_who_may_call_and_who_stays(tables: FakeTables) -> None:
    kind = FrontendKind.LOAD_BALANCER | FrontendKind.SOURCE_RANGES
    guarded = port(
        "default/guarded/TCP/v4",
        socket.IPPROTO_TCP,
        [("10.96.0.77", 80, FrontendKind.CLUSTER_IP), ("192.0.2.77", 80, kind)],
        [("10.1.1.9", 80, False)],
        external_local=True,
        local_drop=True,
        affinity_seconds=60,
        source_ranges=(parse_prefix("198.51.100.0/24"), parse_prefix("203.0.113.7/32")),
    )
    planner, _ = readback.read(tables, 3.0)
    writes.apply(planner.plan({guarded.name: guarded}, 3.0), tables)
    out = run("service", "show", "guarded")[1]
    assert "  sources   198.51.100.0/24, 203.0.113.7/32\n" in out
    assert "192.0.2.77:80  LoadBalancer, only for its source ranges" in out
    assert (
        "internal Cluster, external Local; no backend here: traffic under Local is dropped" in out
    )
    assert "  affinity  clients stay with their backend for 60 s\n" in out
    (row,) = services.show(tables, "guarded")
    assert row.source_ranges == ("198.51.100.0/24", "203.0.113.7/32")
    assert row.without_local == "drop"
    assert "sources" not in run("service", "show", "default/web")[1]


@pytest.mark.parametrize(
    ("known", "shown"),
    [
        (None, "unknown: no agent runs that could say"),
        ({}, "none on its endpoints"),
        ({DNS: "not used: this node has no zone label"}, "not used: this node has no zone label"),
    ],
)
def test_show_says_what_became_of_hints(
    tables: FakeTables,
    monkeypatch: pytest.MonkeyPatch,
    known: dict[str, str] | None,
    shown: str,
) -> None:
    monkeypatch.setattr("lbctl.status.read_hints", lambda _: known)
    assert f"  hints     {shown}\n" in run("service", "show", "kube-dns")[1]


def test_show_as_json(tables: FakeTables) -> None:
    (row,) = json.loads(run("service", "show", "kube-dns:dns", "-o", "json")[1])
    assert row["name"]["text"] == DNS
    assert row["backends"][0]["endpoint"] == "10.1.0.3:53"
    assert row["backends"][0]["sets"] == ["cluster", "local"]


def test_what_lives_counts_too(tables: FakeTables) -> None:
    """Of a flow the totals have nothing before it ends; how many there are is counted."""
    (row,) = services.show(tables, WEB)
    backend = row.backends[0].id
    tables.service_counters.records["live"][row.id] = tables.backend_live.records[backend] = 1
    web: dict[str, Any] = {"service": row.id, "backend": backend}
    client, address, endpoint = ("10.1.0.7", 4000), ("10.96.0.1", 80), ("10.1.0.2", 8080)
    four, _ = tables.flow_tables
    four.add_flow(TCP, client, address, endpoint, packets=5, bytes=500,
                  reply={"packets": 7, "bytes": 7000}, **web)  # fmt: skip
    four.add_flow(TCP, client, address, endpoint, kind=consts.CELL_DIRECT, **web)
    (row,) = services.show(tables, WEB, flow_tables=tables.flow_tables)
    assert row.counters == services.Counters(3, 35, 3500, 27, 207_000, 1)
    assert [found.flows for found in row.backends] == [1, 0]
    text = run("service", "show", WEB)[1]
    assert "3 connections, 1 of them open" in text
    assert "35 packets" in text
    assert "10.1.0.2:8080  this node, weight 100, 50.0% of new flows" in text
    assert run("backend", "list", WEB)[1].splitlines()[1].split()[5] == "1"


def test_an_unknown_service_suggests_near_ones(tables: FakeTables) -> None:
    code, _, err = run("service", "show", "default/wbe")
    assert code == 3
    assert err.startswith("error: there is no service 'default/wbe' here\nDid you mean default/web")
    code, _, err = run("service", "show", "kubedns")
    assert code == 3
    assert "kube-system/kube-dns" in err


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("web", {WEB, WEB6}),
        ("default/web", {WEB, WEB6}),
        ("web:http", {WEB, WEB6}),
        (WEB6, {WEB6}),
        ("kube-system/kube-dns:dns", {DNS}),
    ],
)
def test_how_services_are_named(tables: FakeTables, query: str, meant: set[str]) -> None:
    assert {name.text for name in names.find(tables.names, query).values()} == meant


@pytest.mark.parametrize("query", ["web:https", "other/web", "we", "default/"])
def test_what_is_no_name_of_a_service(tables: FakeTables, query: str) -> None:
    with pytest.raises(NotFound):
        names.find(tables.names, query)


def test_a_name_that_was_cut_off_is_shown_as_it_is() -> None:
    text = "namespace/very-long~0123456789ab"
    assert PortName.parse(text).label == text


def test_backends_of_all_and_of_one(tables: FakeTables) -> None:
    assert [row.endpoint for row in backends.list_backends(tables)] == [
        "10.1.0.2:8080",
        "10.1.1.2:8080",
        "[fd00:1::2]:8080",
        "10.1.0.3:53",
    ]
    code, out, _ = run("backend", "list", DNS)
    assert code == 0
    assert out.splitlines()[1].split() == [
        "kube-system/kube-dns:dns", "UDP", "10.1.0.3:53", "serving", "this", "0",
    ]  # fmt: skip


def test_a_backend_that_left_is_listed_as_leaving() -> None:
    tables = FakeTables()
    populate(tables, DNS)
    (row,) = (row for row in backends.list_backends(tables) if row.service.text == DNS)
    assert (row.serving, row.sets) == (False, ())


def test_backends_of_nothing(tables: FakeTables) -> None:
    code, out, err = run("backend", "list", "empty")
    assert (code, out) == (0, "")
    assert "no backends of empty" in err


def test_backends_with_their_flows(tables: FakeTables) -> None:
    (first, *_) = backends.list_backends(tables, "default/web")
    tables.backend_live.records[first.id] = 3
    code, out, _ = run("backend", "list", "default/web", "-o", "json")
    assert code == 0
    flows = {row["endpoint"]: row["flows"] for row in json.loads(out)}
    assert flows == {"10.1.0.2:8080": 3, "10.1.1.2:8080": 0, "[fd00:1::2]:8080": 0}


def test_as_ipvsadm_shows_it(tables: FakeTables) -> None:
    ids = {name.text: number for number, name in names.all_names(tables.names).items()}
    four, _ = tables.flow_tables
    for client_port, state in ((1000, consts.STATE_ESTABLISHED), (1001, consts.STATE_TIME_WAIT)):
        client, address, endpoint = ("10.1.0.9", client_port), ("10.96.0.1", 80), ("10.1.0.2", 8080)
        four.add_flow(TCP, client, address, endpoint, service=ids[WEB], state=state)
    code, out, _ = run("service", "list", "-o", "ipvsadm")
    assert code == 0
    lines = out.splitlines()
    assert lines[:2] == [
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
    ]
    assert "TCP  10.96.0.9:80 random" in lines
    (at,) = (i for i, line in enumerate(lines) if line.startswith("TCP  10.96.0.1:80 random"))
    assert re.fullmatch(r"TCP  10.96.0.1:80 random persistent \d+", lines[at])
    assert lines[at + 1] == "  -> 10.1.0.2:8080                Masq    100    1          1"
    assert lines[at + 2] == "  -> 10.1.1.2:8080                Masq    100    0          0"
    assert "UDP  10.96.0.10:53 random" in lines


@pytest.mark.parametrize(
    ("algorithm", "alike", "weighted"),
    [
        ("RANDOM", "random", "random"),
        ("ROUND_ROBIN", "rr", "wrr"),
        ("LEAST_CONNECTIONS", "lc", "wlc"),
        ("MAGLEV", "mh", "mh"),
        ("SOURCE_HASH", "sh", "sh"),
    ],
)
def test_ipvsadm_has_the_scheduler_and_the_weights(
    tables: FakeTables, algorithm: str, alike: str, weighted: str
) -> None:
    ids = {name.text: number for number, name in names.all_names(tables.names).items()}
    found = getattr(consts, f"ALGORITHM_{algorithm}")
    tables.services.records["algorithm"][ids[WEB]] = found
    assert _ipvs_server("10.96.0.1:80")[0].split()[2] == alike
    first, second = (row.id for row in backends.list_backends(tables, WEB))
    tables.backends.records["weight"][[first, second]] = 300, 0
    server, *endpoints = _ipvs_server("10.96.0.1:80")
    assert server.split()[2] == weighted
    assert [line.split()[3] for line in endpoints] == ["300", "0"]
    # One that left counts with neither its weight nor for the scheduler's name.
    (four, _), address = tables.flow_tables, ("10.96.0.1", 80)
    client, endpoint = ("10.1.0.9", 1000), ("10.1.1.2", 8080)
    four.add_flow(TCP, client, address, endpoint, service=ids[WEB], state=consts.STATE_ESTABLISHED)
    tables.backends.records["weight"][second] = 50
    tables.backends.records["flags"][second] ^= consts.BACKEND_SERVING
    server, *endpoints = _ipvs_server("10.96.0.1:80")
    assert server.split()[2] == alike
    assert [line.split()[3] for line in endpoints] == ["300", "0"]


def _ipvs_server(address: str) -> list[str]:
    """The lines of one virtual server."""
    code, out, _ = run("service", "list", "-o", "ipvsadm")
    assert code == 0
    _, _, rest = out.partition(f" {address} ")
    server, *lines = rest.splitlines()
    endpoints = itertools.takewhile(lambda line: line.startswith("  ->"), lines)
    return [f"TCP {address} {server}", *endpoints]
