"""Programs and maps shared by the kernel tests; made anew for none of them, cleaned for each."""

from collections.abc import Iterator

import pytest

from ebpf.maps import declared
from tests.kernel.support.programs import USES
from tests.kernel.support.world import World


@pytest.fixture(scope="package", autouse=True)
def _maps_of_the_small_bundle() -> Iterator[None]:
    """Declared while these tests run, and not for those that follow."""
    declared.USES.update(USES)
    yield
    for name in USES:
        del declared.USES[name]


@pytest.fixture(scope="session")
def shared_world() -> Iterator[World]:
    """Loading and verifying the programs takes seconds: once."""
    made = World()
    yield made
    made.close()


@pytest.fixture
def world(shared_world: World) -> World:
    """A node without services and flows."""
    shared_world.reset()
    return shared_world


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> float:
    """How many seconds each test of chance lasts: a few, or as many as --soak says."""
    seconds: float = request.config.getoption("--soak")
    return seconds
