"""Streams of several nodes as one: nothing is lost, doubled or told too late."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lbctl.kubectl.interleaving import Interleaver, Line
from lbctl.kubectl.podnames import PodNames, named

NODES = ("a", "b", "c")
HOLD = 5
# When a line comes, and how much earlier what it tells of was.
COMING = st.lists(
    st.tuples(st.sampled_from(NODES), st.integers(0, 8), st.integers(0, 4)), max_size=60
)


def run(coming: list[tuple[str, int, int]], gone: str = "") -> list[tuple[int, Line]]:
    """Lines as they go on, and when."""
    lines = Interleaver(NODES)
    now = 0
    found: list[tuple[int, Line]] = []

    def look(until: int) -> None:
        nonlocal now
        while now < until:
            found.extend((now, line) for line in lines.ready(now))
            now += 1

    for number, (node, passed, delay) in enumerate(coming):
        look(now + passed)
        if number == len(coming) // 2 and gone:
            lines.gone(gone)
        if node != gone or number < len(coming) // 2:
            lines.add(node, now - delay, f"{number}", now + HOLD)
    look(now + HOLD + 2)
    return found


@given(COMING, st.sampled_from(("", *NODES)))
def test_each_line_goes_on_once_and_in_time(coming: list[tuple[str, int, int]], gone: str) -> None:
    half = len(coming) // 2
    meant = [(n, str(i)) for i, (n, _, _) in enumerate(coming) if n != gone or i < half]
    found = run(coming, gone)
    assert Counter((line.source, line.text) for _, line in found) == Counter(meant)
    assert all(when <= line.until for when, line in found)
    for node in NODES:
        assert [int(line.text) for _, line in found if line.source == node] == sorted(
            int(text) for source, text in meant if source == node
        )


@given(COMING)
def test_what_is_late_by_less_than_the_bound_is_in_its_place(
    coming: list[tuple[str, int, int]],
) -> None:
    """Lines come at most 4 late, and wait for 5: whatever was told, it is in order."""
    moments = [line.moment for _, line in run(coming)]
    assert moments == sorted(moments)


def test_nothing_waits_for_what_has_gone() -> None:
    lines = Interleaver(NODES)
    lines.add("a", 1.0, "x", 9.0)
    assert lines.due() == 9.0
    assert [*lines.ready(0.0)] == []
    for node in "bc":
        lines.gone(node)
    assert [line.text for line in lines.ready(0.0)] == ["x"]
    assert lines.due() is None


def test_a_new_address_is_asked_for_not_too_often_and_once() -> None:
    now, asked = 0.0, 0

    def read() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise RuntimeError("no answer")
        return f"Running\t\tapps/a\t10.0.0.{asked}\n"

    names = PodNames(read, lambda: now)
    names.load()
    assert names.of("10.0.0.3") == ""
    assert asked == 1
    now = 31.0
    assert names.of("192.0.2.1") == ""  # nobody can be asked, and what is known stays
    assert names.of("10.0.0.1") == "apps/a"
    now = 62.0
    assert names.of("192.0.2.1") == ""
    assert asked == 2
    assert names.of("10.0.0.3") == "apps/a"
    assert asked == 3


def test_addresses_in_text() -> None:
    names = PodNames(lambda: "Running\t\tapps/a\t10.1.0.9 fd00::9\n")
    names.load()
    for text, wanted in {
        "10.1.0.9:80 -> default/web (10.1.0.90:80)": "apps/a:80 -> default/web (10.1.0.90:80)",
        "10.1.0.9": "apps/a",
        "[fd00::9]:80 x": "apps/a:80 x",
        "fd00::9  7": "apps/a   7",
        "10.1.0.9/32 12:40:09.000 1.10.1.0.9": "10.1.0.9/32 12:40:09.000 1.10.1.0.9",
        "x 10.1.0.9.": "x 10.1.0.9.",
    }.items():
        assert names.in_text(text) == wanted


def test_who_has_an_address() -> None:
    assert named("Pending\t\ta/b\t\nFailed\t\ta/c\t10.0.0.1\nRunning\ttrue\ta/d\t10.0.0.2\n") == {}
