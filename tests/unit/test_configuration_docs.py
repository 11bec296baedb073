"""docs/configuration.md names every field that the code knows, and none twice as both."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from lbctl.config import settings
from lbctl.config.agentconfig import AgentConfig
from lbctl.config.kubeproxyconfig import _TIMEOUTS, _File

TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"^#+ {title}$(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def words(text: str) -> set[str]:
    return {
        word for quoted in re.findall(r"`([^`]+)`", text) for word in re.split(r"[.: ]", quoted)
    }


def test_honoured_fields_are_described() -> None:
    honoured = words(section("Honoured"))
    fields = {field.encode_name for field in msgspec.structs.fields(_File)}
    assert fields - {"apiVersion", "kind"} <= honoured
    assert _TIMEOUTS.keys() <= honoured


def test_our_own_fields_are_described() -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(AgentConfig)}
    table = section("AgentConfiguration")
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == fields - {"apiVersion", "kind"}


def test_what_a_running_agent_takes_over_is_said() -> None:
    live, restart = section("When the file changes").split("Until the next start")
    assert {*settings._NODE_FIELDS.values(), *settings._LIVE_FIELDS.values()} <= words(live)
    named = set(re.findall(r"`([\w.]+)`", restart))
    assert set(settings._START_FIELDS.values()) <= named
    assert not words(live) & named
