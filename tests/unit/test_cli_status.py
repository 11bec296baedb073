"""`lbctl status`, as people read it."""

import contextlib
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from lbctl.cli.main import command
from lbctl.inspect import instance as inspected
from lbctl.inspect.instance import InstanceStatus
from lbctl.status import DriverState


def _status(**said: Any) -> InstanceStatus:
    """That of a node without anything, but for what is `said`."""
    words = ("pin_dir", "node", "version", "last_apply", "socket_lb", "xdp")
    lists = ("drivers", "xdp_others", "maps", "warnings")
    records = ("reasons", "audit", "fast_path")
    nothing: dict[str, Any] = dict.fromkeys(InstanceStatus.__struct_fields__, 0)
    nothing |= {"ready": False, "taking_over": False, "source": {"kind": ""}}
    nothing |= dict.fromkeys(words, "") | dict.fromkeys(lists, ()) | {name: {} for name in records}
    return msgspec.convert(nothing | said, InstanceStatus)


def lines_of(found: InstanceStatus, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("lbctl.cli.status.open_instance", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(inspected, "read", lambda _: found)
    result = CliRunner().invoke(command, ["status"])
    assert result.exit_code == 0
    return result.stdout.splitlines()


@pytest.mark.parametrize("connected", [True, False])
def test_drivers_and_the_source_have_lines_of_their_own(
    connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _status(
        drivers=[DriverState("eth0", "sends", ""), DriverState("eth1", "tc", "no")],
        source={"kind": "kubernetes", "connected": connected, "last_error": "it is away"},
    )
    lines = lines_of(found, monkeypatch)
    assert "xdp         eth0 in use" in lines
    assert "            eth1 left to TC: no" in lines
    source = lines.index(f"source      kubernetes, {'connected' if connected else 'not connected'}")
    assert lines[source + 1] == "            it is away"


@pytest.mark.parametrize(
    ("xdp", "first", "second"),
    [
        ("auto", "xdp         eth0 ready, not in use now", "            left to TC for a rule"),
        ("on", "xdp         eth0 in use", "            sent on past a rule"),
    ],
)
def test_a_driver_that_waits_for_others_is_not_said_to_be_in_use(
    xdp: str, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers = [DriverState("eth0", "sends", "")]
    lines = lines_of(_status(xdp=xdp, xdp_others=["a rule"], drivers=drivers), monkeypatch)
    assert lines[lines.index(first) + 1] == second
