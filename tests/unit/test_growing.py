"""When tables grow, and to what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbctl.reconcile.growing import FULL, Growing, Room


@pytest.mark.parametrize(
    ("used", "wanted"),
    [(0, 1024), (512, 1024), (513, 2048), (1024, 2048), (1025, 4096), (1_000_000, 8192)],
)
def test_a_table_doubles_before_it_is_full(used: int, wanted: int) -> None:
    assert Growing().wanted(Room(used, 1024, 8192), 1.0) == wanted


def test_what_comes_in_meanwhile_has_room_too() -> None:
    growing = Growing()
    assert growing.wanted(Room(100, 1024, 1 << 20), 1.0) == 1024
    assert growing.wanted(Room(300, 1024, 1 << 20), 2.0) == 8192  # 200 a second, for ten
    assert growing.wanted(Room(300, 1024, 1 << 20), 3.0) == 1024
    assert growing.wanted(Room(10, 1024, 1 << 20), 4.0) == 1024


def test_a_bound_that_is_no_power_of_two_is_reached() -> None:
    assert Growing().wanted(Room(900, 1024, 1500), 1.0) == 1500


@given(st.integers(0, 1 << 24), st.integers(1, 1 << 20), st.integers(1, 1 << 24))
def test_it_never_shrinks_nor_passes_the_bound(used: int, now: int, most: int) -> None:
    wanted = Growing().wanted(Room(used, now, most), 1.0)
    assert now <= wanted <= max(now, most)
    assert used <= FULL * wanted or wanted == max(now, most)
