"""What can be asked, and what a wrong question is told."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from lbctl.addresses import parse_address
from lbctl.cli.main import command
from lbctl.datapath.reasons import reason_names
from lbctl.errors import LbError, UsageError
from lbctl.model.records import Protocol
from lbctl.trace.flows import parse_flow, read_flows


@pytest.mark.parametrize(
    ("destination", "address", "port", "protocol"),
    [
        ("172.30.0.41:80/tcp", "172.30.0.41", 80, Protocol.TCP),
        ("172.30.0.41:80", "172.30.0.41", 80, Protocol.TCP),
        ("172.30.0.41:53/UDP", "172.30.0.41", 53, Protocol.UDP),
        ("172.30.0.41:3868/sctp", "172.30.0.41", 3868, Protocol.SCTP),
    ],
)
def test_a_flow_as_arguments(destination: str, address: str, port: int, protocol: Protocol) -> None:
    flow = parse_flow("10.0.0.2", destination)
    assert flow.source == parse_address("10.0.0.2")
    assert (flow.destination, flow.port, flow.protocol) == (parse_address(address), port, protocol)


@pytest.mark.parametrize("source", ["fd00::2", "[fd00::2]"])
def test_a_flow_of_ipv6(source: str) -> None:
    flow = parse_flow(source, "[fd00:1::41]:65535/udp")
    assert flow.source == parse_address("fd00::2")
    assert (flow.destination, flow.port) == (parse_address("fd00:1::41"), 65535)


@pytest.mark.parametrize(
    ("source", "destination", "says"),
    [
        ("10.0.0.2", "172.30.0.41", "address and a port"),
        ("10.0.0.2", "172.30.0.41:http", "'http' is not a port"),
        ("10.0.0.2", "172.30.0.41:0", "not between 1 and 65535"),
        ("10.0.0.2", "172.30.0.41:70000", "not between 1 and 65535"),
        ("10.0.0.2", "172.30.0.41:80/icmp", "unknown protocol 'icmp'"),
        ("10.0.0.2", "172.30.0.411:80", "destination: '172.30.0.411'"),
        ("pod", "172.30.0.41:80", "source: 'pod'"),
        ("fd00::2", "172.30.0.41:80", "different families"),
        ("fd00::2", "fd00:1::41:80", "address and a port"),
    ],
)
def test_what_is_no_flow(source: str, destination: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_flow(source, destination)
    assert caught.value.exit_code == 2


FLOW = {
    "name": "first",
    "source_ip": "10.0.0.2",
    "dest_ip": "172.30.0.41",
    "dest_port": 80,
    "protocol": "TCP",
}


def _write(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "flows.json"
    path.write_bytes(msgspec.json.encode(value))
    return path


def test_flows_of_a_file(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        [
            FLOW,
            {**FLOW, "name": "second", "arrives": "uplink", "expect": {}},
            {**FLOW, "arrives": None},
        ],
    )
    first, second, third = read_flows(path)
    assert (first.name, first.port, first.protocol) == ("first", 80, Protocol.TCP)
    assert (second.name, second.arrives) == ("second", "uplink")
    assert (first.arrives, third.arrives) == (None, None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protocol": "icmp"}, "flow 1 .second.: unknown protocol"),
        ({"dest_port": "80"}, r"\[1\].dest_port"),
        ({"arrives": "moon"}, r"\[1\].arrives"),
        ({"source_ip": ""}, "flow 1 .second.: source"),
    ],
)
def test_a_wrong_flow_is_named(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = _write(tmp_path, [FLOW, {**FLOW, "name": "second", **change}])
    with pytest.raises(UsageError, match=says) as caught:
        read_flows(path)
    assert "flows.json" in caught.value.message


def test_a_file_of_flows_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_flows(tmp_path / "none.json")
    with pytest.raises(UsageError, match="JSON"):
        read_flows(_write(tmp_path, {"flows": []}))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to trace"),
        (["10.0.0.2"], "nothing to trace"),
        (["10.0.0.2", "172.30.0.41:80", "--flows", "x"], "twice"),
        (["10.0.0.2", "172.30.0.41:80", "--node-name", "n"], "--node-name has no effect without"),
        (["10.0.0.2", "172.30.0.41:80", "--service-cidr", "10.0.0.0/8"], "--service-cidr has"),
        (["10.0.0.2", "172.30.0.41:80/icmp"], "unknown protocol"),
        (["10.0.0.2", "172.30.0.41:80", "--samples", "0"], "--samples"),
        (["10.0.0.2", "172.30.0.41:80", "--manifests", "/none"], "/none: No such file"),
    ],
)
def test_wrong_use_is_explained(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(command, ["trace", *arguments])
    assert result.exit_code in (1, 2)
    assert says in result.stderr
    assert not result.stdout


def _objects(tmp_path: Path, *names: str) -> Path:
    path = tmp_path / "objects.json"
    nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in names]
    path.write_bytes(msgspec.json.encode({"kind": "List", "items": nodes}))
    return path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--node-name", "n", "--local-ip", "nowhere"], "--local-ip: 'nowhere'"),
        (["--node-name", "n", "--service-cidr", "10.0.0.0"], "--service-cidr: '10.0.0.0'"),
        (["--node-name", "n", "--config", "/none.yaml"], "--config /none.yaml: No such file"),
        ([], "--node-name is missing"),
    ],
)
def test_wrong_options_of_a_node(tmp_path: Path, arguments: list[str], says: str) -> None:
    common = [
        "trace",
        "10.0.0.2",
        "172.30.0.41:80",
        "--manifests",
        str(_objects(tmp_path, "a", "b")),
    ]
    result = CliRunner().invoke(command, [*common, *arguments])
    assert result.exit_code in (1, 2)
    assert says in result.stderr


def test_without_root_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    arguments = ["trace", "10.0.0.2", "172.30.0.41:80", "--manifests", str(_objects(tmp_path, "a"))]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 1
    assert "needs root" in result.stderr


def test_reasons_are_named_without_their_prefix() -> None:
    enums = {"REASON_NO_ENDPOINT": 2, "REASON_MAX": 3, "FLOW_SYN": 1}
    assert reason_names(enums) == {2: "no_endpoint"}


def test_an_error_has_a_hint() -> None:
    with pytest.raises(LbError) as caught:
        parse_flow("10.0.0.2", "web.shop:80")
    assert "not resolved" in caught.value.hint
