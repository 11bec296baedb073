"""Fixtures that several modules here share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hostile_api import HostileApi
from tests.support.hostile_following import Follow, following, serving


@pytest.fixture
def api() -> Iterator[HostileApi]:
    """A server that answers as it is told to."""
    with serving() as made:
        yield made


@pytest.fixture
def follow(api: HostileApi, tmp_path: Path) -> Iterator[Follow]:
    """Starts sources that follow it."""
    with following(api, tmp_path) as start:
        yield start
