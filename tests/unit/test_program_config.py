"""The config record: what the programs are told of the node, and when it is written."""

import pytest

from lbctl.addresses import parse_address, parse_prefix
from lbctl.datapath import consts
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
    config.store(table, FACTS, DataPathSettings(True, 1000))
    record = table.records[0]
    assert record["flags"] == consts.CONFIG_PASS_MIDSTREAM
    assert record["flow_limit"] == 750
    # 60 s are 55.9 ticks of 2^30 ns: never less than what was meant.
    assert record["syn_timeout"] == 56
    assert (record["port_min"], record["port_max"]) == (61000, 64511)
    assert record["node_port_max"] == 65535
    assert record["node4"].tobytes() == parse_address("172.18.0.11")
    assert (record["cidr_count4"], record["cidr_count6"]) == (1, 1)
    assert record["cidr4"][0]["net"].tobytes()[12:] == bytes([10, 96, 0, 0])
    assert record["cidr4"][0]["mask"].tobytes()[12:] == bytes([255, 255, 0, 0])
    assert record["cidr6"][0]["mask"].tobytes() == b"\xff" * 14 + b"\0\0"


def test_an_equal_config_is_not_written() -> None:
    table = FakeTables().config
    config.store(table, FACTS, DataPathSettings(False, 1000))
    table.records.flags.writeable = False
    assert config.store(table, FACTS, DataPathSettings(False, 1000)) == []


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
    config.store(table, FACTS, DataPathSettings(False, 1000))
    assert config.store(table, FACTS, DataPathSettings(True, 1000)) == ["flags"]
    fewer = NodeFacts("node1", primary4=FACTS.primary4, primary6=FACTS.primary6)
    config.store(table, fewer, DataPathSettings(True, 1000))
    assert (table.records["cidr_count4"][0], table.records["cidr_count6"][0]) == (0, 0)


def test_too_many_ranges_are_an_error_that_says_how_many_fit() -> None:
    cidrs = tuple(parse_prefix(f"10.{i}.0.0/16") for i in range(consts.MAX_SERVICE_CIDRS + 1))
    with pytest.raises(ConfigError, match="--service-cidr") as caught:
        config.store(
            FakeTables().config,
            NodeFacts("n", service_cidrs=cidrs),
            DataPathSettings(False, 1),
        )
    assert str(consts.MAX_SERVICE_CIDRS) in caught.value.hint


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, 0), (1, 1), (1.0737, 1), (1.1, 2), (60, 56), (10800, 10059)]
)
def test_ticks_cover_the_seconds(seconds: float, expected: int) -> None:
    assert consts.ticks(seconds) == expected
    assert expected * 2**30 >= seconds * 1e9 - 1e5
