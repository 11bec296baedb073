"""Labs for tests: each has a name of its own and is removed whatever happens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lbctl.lab import teardown
from lbctl.lab.cluster import Lab


@pytest.fixture(scope="module")
def lab_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for this module's lab, unique on this machine; the lab is removed at the end."""
    module = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
    name = f"t{os.getpid()}-{module}"[:40].rstrip("-")
    try:
        yield name
    finally:
        teardown.remove(name)


@pytest.fixture(scope="module")
def make_lab(lab_name: str) -> Iterator[Callable[..., Lab]]:
    """`make_lab(suffix, **options)` is `Lab.up` with a name of this module's; all are removed."""
    made: list[Lab] = []

    def make(suffix: str, **options: Any) -> Lab:
        lab = Lab.up(f"{lab_name[:30]}-{suffix}", **options)
        made.append(lab)
        return lab

    try:
        yield make
    finally:
        for lab in made:
            lab.down()


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Two nodes with three pods each and running agents, shared by a module's tests."""
    return make_lab("lab")
