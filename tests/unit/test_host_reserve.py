"""Reserved ports: where the node's setting is written, and what stays in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbctl.host import reserve


def test_a_mounted_setting_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = tmp_path / "ports"
    monkeypatch.setattr(reserve, "MOUNTED", mounted)
    assert reserve.place() == reserve.RESERVED
    mounted.touch()
    assert reserve.place() == mounted


@pytest.mark.parametrize(
    ("before", "after", "wrote"),
    [
        ("", "61000-65535", True),
        ("8080,9000-9010", "8080,9000-9010,61000-65535", True),
        ("61000-61999,62000-65535", "61000-61999,62000-65535", False),
        ("1-65535", "1-65535", False),
    ],
)
def test_what_is_there_stays(tmp_path: Path, before: str, after: str, wrote: bool) -> None:
    path = tmp_path / "ports"
    path.write_text(before + "\n")
    assert reserve.reserve(61000, 65535, path) is wrote
    assert path.read_text().strip() == after
