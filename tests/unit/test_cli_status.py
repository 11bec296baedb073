"""`lbctl status`, as people read it."""

import contextlib
from pathlib import Path
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


@pytest.mark.parametrize("connected", [True, False])
def test_drivers_and_the_source_have_lines_of_their_own(
    connected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = _status(
        drivers=[DriverState("eth0", "sends", ""), DriverState("eth1", "tc", "no")],
        source={"kind": "kubernetes", "connected": connected, "last_error": "it is away"},
    )
    monkeypatch.setattr("lbctl.cli.status.open_instance", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(inspected, "read", lambda _: found)
    result = CliRunner().invoke(command, ["status", "--pin-dir", str(tmp_path)])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "xdp         eth0 in use" in lines
    assert "            eth1 left to TC: no" in lines
    source = lines.index(f"source      kubernetes, {'connected' if connected else 'not connected'}")
    assert lines[source + 1] == "            it is away"
