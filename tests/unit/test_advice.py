"""What the errors of `ebpf` come to for an operator."""

from __future__ import annotations

from typing import get_args

import pytest

from ebpf.errors import Damaged, LbError, Locked, MapFull
from ebpf.maps.declared import Limit
from lbctl import advice


def test_every_limit_is_an_option_of_the_agent() -> None:
    from lbctl.cli.agent import command

    assert advice.FLAGS.keys() == set(get_args(Limit))
    options = {text for parameter in command.params for text in parameter.opts}
    assert set(advice.FLAGS.values()) <= options


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("frontends", "--services"),
        ("services", "--services"),
        ("source_ranges", "--services"),
        ("slots", "--endpoints"),
        ("backends", "--endpoints"),
        ("cells4a", ""),
        ("config", ""),
        ("unheard_of", ""),
    ],
)
def test_the_option_of_a_map(name: str, flag: str) -> None:
    assert advice.flag_of(name) == flag


def test_what_helps() -> None:
    assert advice.on(MapFull("slots", 10, "endpoints")).endswith("a larger --endpoints.")
    assert advice.on(MapFull("config", 1)) == ""
    assert "--pin-dir" in advice.on(Locked("held"))
    assert "lbctl cleanup" in advice.on(Damaged("odd"))
    assert advice.on(LbError("it broke", "mend it")) == "mend it"
