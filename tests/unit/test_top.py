"""`lbctl top`: rates are differences of counters, and rows come in the order that is asked for."""

from __future__ import annotations

from typing import Any, cast

import pytest
from click.testing import CliRunner

from lbctl.cli.main import command as lbctl
from lbctl.cli.top import Screen
from lbctl.inspect import top
from lbctl.inspect.flowtotals import Totals
from lbctl.inspect.top import Looks, Top, TopRow, arranged, sparkline

INSTANCE = cast("Any", object())


class Counted:
    """What the maps say, look by look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.totals: dict[str, Totals] = {}
        self.reasons: dict[str, int] = {}
        monkeypatch.setattr(Looks, "_totals", self._all)
        monkeypatch.setattr(top, "reasons", lambda _: dict(self.reasons))

    def _all(self, _: object) -> dict[str, Totals]:
        return dict(self.totals)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def rows(found: Top) -> dict[str, TopRow]:
    return {row.name: row for row in found.rows}


def test_rates_are_differences(counted: Counted) -> None:
    looks = Looks("services")
    counted.totals = {"web": Totals(10, 100, 1000), "dns": Totals(5, 5, 5)}
    counted.reasons = {"forwarded": 7, "no_endpoint": 1}
    first = looks.look(INSTANCE, 100.0)
    assert first.seconds == 0
    assert rows(first)["web"].bytes == 0
    assert first.reasons == {}
    counted.totals = {"web": Totals(14, 180, 5000), "dns": Totals(5, 5, 5), "new": Totals(2, 4, 8)}
    counted.reasons = {"forwarded": 7, "no_endpoint": 5}
    second = looks.look(INSTANCE, 102.0)
    web = rows(second)["web"]
    assert (web.connections, web.packets, web.bytes) == (2, 40, 2000)
    assert rows(second)["new"].connections == 1
    assert second.reasons == {"no_endpoint": 2}
    assert web.history == (2000,)


def test_what_shrinks_has_no_rate_below_nothing(counted: Counted) -> None:
    """Flows end, and with them what they had counted."""
    looks = Looks("clients")
    counted.totals = {"10.0.0.1": Totals(9, 90, 900, 9)}
    looks.look(INSTANCE, 1.0)
    counted.totals = {"10.0.0.1": Totals(2, 20, 200, 2)}
    row = rows(looks.look(INSTANCE, 2.0))["10.0.0.1"]
    assert (row.connections, row.packets, row.bytes, row.active) == (0, 0, 0, 2)


def test_the_order_and_the_filter() -> None:
    found = Top(
        "backends",
        1.0,
        (TopRow("a", 1, 9, 5, 2, ()), TopRow("b", 3, 1, 7, 1, ()), TopRow("ab", 2, 2, 6, 0, ())),
        {},
    )
    names = {sort: [row.name for row in arranged(found, sort, "", 9)] for sort in top.SORTS}
    assert names == {
        "connections": ["b", "ab", "a"],
        "packets": ["a", "ab", "b"],
        "bytes": ["b", "ab", "a"],
        "active": ["a", "b", "ab"],
        "name": ["a", "ab", "b"],
    }
    assert [row.name for row in arranged(found, "bytes", "b", 1)] == ["b"]
    assert [row.name for row in arranged(found, "bytes", "a", 9)] == ["ab", "a"]


def test_sparklines() -> None:
    assert sparkline(()) == ""
    assert sparkline((0.0, 0.0)) == "▁▁"
    assert sparkline((0.0, 3.5, 7.0)) == "▁▅█"


def test_keys_sort_filter_and_change_the_view() -> None:
    screen = Screen(INSTANCE, "services", "bytes", "", 1.0)
    for key in "c/webx\x7f\rB":
        assert screen._pressed(key)
    assert (screen._sort, screen._wanted, screen._kind) == ("connections", "web", "backends")
    assert screen._pressed("/")
    assert screen._pressed("q")  # a letter like another, there
    assert screen._pressed("\x1b")
    assert not screen._pressed("q")


def test_without_a_terminal() -> None:
    done = CliRunner().invoke(lbctl, ["top"])
    assert done.exit_code == 2
    assert "--once" in done.stderr
