"""docs/configuration.md names every field that the code knows, and none twice as both."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from lbctl.cli import agent
from lbctl.config import document
from lbctl.config.agentconfig import FIELDS
from lbctl.config.kubeproxyconfig import _TIMEOUTS, _File
from lbctl.config.settings import OPTIONS

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
    named = re.findall(r"^\| `(\w+)` \|", section("AgentConfiguration"), re.MULTILINE)
    assert named == list(FIELDS)


def test_every_option_of_the_agent_is_in_a_table_or_beside_it() -> None:
    others = section("The other options")
    told = words(section("AgentConfiguration")) | words(others)
    flags = {flag for found in agent.command.params for flag in found.opts if flag[:2] == "--"}
    assert flags <= told


def test_what_a_running_agent_takes_over_is_said() -> None:
    live, restart = section("When the file changes").split("Until the next start")
    files = [found for found in OPTIONS.values() if found.in_file]
    assert {found.in_file for found in files if found.option.live} <= words(live)
    named = set(re.findall(r"`([\w.]+)`", restart))
    assert {found.in_file for found in files if not found.option.live} <= named
    assert not words(live) & named


def test_what_is_made_of_the_options_is_fresh() -> None:
    stale = "run python -m lbctl.config.document"
    assert document.document(TEXT) == TEXT, stale
    example = document.EXAMPLE.read_text()
    assert document.example(example) == example, stale


def test_what_is_made_replaces_what_stood_there_and_nothing_else() -> None:
    worn = TEXT.replace("| `flows` | ", "| `flow` | ").replace("`takeover` and", "")
    assert worn != TEXT
    assert document.document(worn) == TEXT
    example = document.EXAMPLE.read_text()
    assert document.example(f"{example}flow: 3\n") == example
    assert document.example("mode: nftables\n") == "mode: nftables\n"
