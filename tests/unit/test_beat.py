"""An agent says in the config record that it lives, from when all is attached until it stops."""

from lbctl.addresses import parse_address
from lbctl.agent.beat import BEAT_SECONDS, Beat
from lbctl.datapath import clock
from lbctl.program import config
from lbctl.program.config import DataPathSettings
from lbctl.resolve.node import NodeFacts
from tests.support.fake_tables import FakeTables


def test_it_begins_is_repeated_and_is_taken_back() -> None:
    table = FakeTables().config
    beat = Beat(table)
    assert beat.due() is None
    beat.start(100.0)
    assert table.records["agent_beat"][0] in (
        clock.current_beat(),
        clock.current_beat() - 1,
    )
    assert beat.due() == 100.0 + BEAT_SECONDS
    table.records["agent_beat"] = 1
    beat.step(103.0)
    assert table.records["agent_beat"][0] > 1
    assert beat.due() == 103.0 + BEAT_SECONDS
    beat.stop()
    assert table.records["agent_beat"][0] == 0
    assert beat.due() is None


def test_it_is_no_settings_business() -> None:
    """Nothing that is configured meanwhile may take it back."""
    table = FakeTables().config
    Beat(table).start(100.0)
    before = int(table.records["agent_beat"][0])
    facts = NodeFacts("node1", primary4=parse_address("192.0.2.1"))
    assert "agent_beat" not in config.store(table, facts, DataPathSettings(False))
    assert table.records["agent_beat"][0] == before


def test_programs_wait_for_more_than_two_of_them() -> None:
    assert 2 * BEAT_SECONDS < config.AGENT_SECONDS
