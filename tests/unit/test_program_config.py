"""The config record: what the programs are told of the node, and when it is written."""

import socket

import pytest

from lbctl.addresses import parse_address, parse_prefix
from lbctl.datapath import clock, consts
from lbctl.errors import ConfigError
from lbctl.program import config
from lbctl.program.config import DataPathSettings
from lbctl.resolve.node import NodeFacts
from tests.support.fake_tables import FakeTables

FACTS = NodeFacts(
    "node1",
    primary4=parse_address("172.18.0.11"),
    primary6=parse_address("fd00:18::11"),
    service_cidrs=(parse_prefix("10.96.0.0/16"), parse_prefix("fd00:96::/112")),
)


def test_the_config_record_says_what_the_programs_need() -> None:
    table = FakeTables().config
    config.store(table, FACTS, DataPathSettings(True))
    record = table.records[0]
    assert record["flags"] == consts.CONFIG_PASS_MIDSTREAM
    assert (record["port_min"], record["port_max"]) == (61000, 64511)
    assert record["node_port_max"] == 65535
    assert record["node4"].tobytes() == parse_address("172.18.0.11")
    assert (record["cidr_count4"], record["cidr_count6"]) == (1, 1)
    assert record["cidr4"][0]["net"].tobytes()[12:] == bytes([10, 96, 0, 0])
    assert record["cidr4"][0]["mask"].tobytes()[12:] == bytes([255, 255, 0, 0])
    assert record["cidr6"][0]["mask"].tobytes() == b"\xff" * 14 + b"\0\0"


def test_what_nodes_tell_each_other_of_dsr() -> None:
    """The port of outer headers, and an address of each family that serves node ports."""
    table = FakeTables().config
    four, six = parse_address("172.18.0.11"), parse_address("fd00:18::11")
    facts = NodeFacts("node1", nodeport_addresses=tuple(sorted((four, six))))
    config.store(table, facts, DataPathSettings(False, dsr_port=6080))
    record = table.records[0]
    assert (record["dsr_port"], record["flags"]) == (socket.htons(6080), 0)
    assert record["node_port4"].tobytes() == four
    assert record["node_port6"].tobytes() == six
    changed = config.store(table, facts, DataPathSettings(False, dsr_port=6080, dsr_ipip=True))
    assert changed == ["flags"]
    assert table.records[0]["flags"] == consts.CONFIG_DSR_IPIP
    config.store(table, NodeFacts("node1"), DataPathSettings(False))
    assert table.records[0]["node_port4"].tobytes() == bytes(16)


def test_an_equal_config_is_not_written() -> None:
    table = FakeTables().config
    config.store(table, FACTS, DataPathSettings(False))
    table.records.flags.writeable = False
    assert config.store(table, FACTS, DataPathSettings(False)) == []


def test_devices_are_written_and_deleted_by_difference() -> None:
    table = FakeTables().devices
    four, six = parse_address("10.244.1.0"), parse_address("fd00:244::1")
    assert config.store_devices(table, {7: {4: four}, 9: {4: four, 6: six}}) == 2
    assert config.store_devices(table, {7: {4: four}, 9: {4: four, 6: six}}) == 0
    assert config.store_devices(table, {9: {6: six}}) == 2
    key, value = table.read_all()
    assert (key.tolist(), value.tobytes()) == ([9], bytes(16) + six)
    assert config.store_devices(table, {}) == 1
    many = {index: {4: four} for index in range(10_000)}
    assert config.store_devices(table, many) == table.max_entries


def test_only_what_differs_is_written() -> None:
    table = FakeTables().config
    config.store(table, FACTS, DataPathSettings(False))
    assert config.store(table, FACTS, DataPathSettings(True)) == ["flags"]
    fewer = NodeFacts("node1", primary4=FACTS.primary4, primary6=FACTS.primary6)
    config.store(table, fewer, DataPathSettings(True))
    assert (table.records["cidr_count4"][0], table.records["cidr_count6"][0]) == (0, 0)


def test_too_many_ranges_are_an_error_that_says_how_many_fit() -> None:
    cidrs = tuple(parse_prefix(f"10.{i}.0.0/16") for i in range(consts.MAX_SERVICE_CIDRS + 1))
    with pytest.raises(ConfigError, match="--service-cidr") as caught:
        config.store(
            FakeTables().config,
            NodeFacts("n", service_cidrs=cidrs),
            DataPathSettings(False),
        )
    assert str(consts.MAX_SERVICE_CIDRS) in caught.value.hint


@pytest.mark.parametrize("name", [*config.TIMEOUTS, "agent_timeout"])
def test_timeouts_are_in_beats_and_never_less_than_what_was_meant(name: str) -> None:
    table = FakeTables().config
    config.store(table, FACTS, DataPathSettings(False))
    seconds = {**config.TIMEOUTS, "agent_timeout": config.AGENT_SECONDS}[name]
    beats = int(table.records[name][0])
    assert clock.seconds(beats - 1) < seconds <= clock.seconds(beats)


def test_what_is_in_use_does_not_look_idle_however_short_a_timeout() -> None:
    table, never = FakeTables().config, (("syn_timeout", 0.01), ("reset_timeout", 0.0))
    config.store(table, FACTS, DataPathSettings(False, timeouts=never))
    assert (table.records["syn_timeout"][0], table.records["reset_timeout"][0]) == (2, 0)


def test_the_longest_timeout_is_one_that_ages_can_reach() -> None:
    assert clock.beats(2**31) <= 2**31 - 1
