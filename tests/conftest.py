"""What every test run shares: root for the tests that need it, no silent skips in CI, and who may
run beside whom where several processes share the tests (`./dev test`)."""

import fcntl
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

PRIVILEGED = ("kernel", "lab")
ALONE = ("perf", "alone")
# How long an example takes says how busy the machine is.
settings.register_profile(
    "unhurried", settings.get_profile(settings.get_current_profile_name()), deadline=None
)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _log_to_nobody_elses_stream() -> Iterator[None]:
    """A command under test sets up logging to a stream that ends with the test."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak", type=float, default=2.0, help="seconds for each stress test (default: 2)"
    )


def _privileged(item: pytest.Item) -> str | None:
    return next((mark for mark in PRIVILEGED if item.get_closest_marker(mark)), None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = _privileged(item)
    if mark and os.geteuid() != 0:
        pytest.skip(f"{mark} test: needs root (sudo ./dev test)")


def _is_marked(item: pytest.Item, marks: tuple[str, ...]) -> bool:
    return any(item.get_closest_marker(mark) for mark in marks)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What measures comes last, when other processes have little left that would wait for it."""
    items.sort(key=lambda item: _is_marked(item, ("perf",)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Beside a test that is to be alone no other process runs one. Whoever waits for that keeps the
    gate meanwhile: else others that follow each other would keep it out for ever."""
    if not hasattr(item.config, "workerinput"):  # what pytest-xdist tells its processes
        return (yield)
    gate, room = (os.open(path, os.O_RDONLY) for path in (__file__, Path(__file__).parent))
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if _is_marked(item, ALONE) else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        return (yield)
    finally:
        for fd in (gate, room):
            fcntl.flock(fd, fcntl.LOCK_UN)  # a process that was forked may have it as well
            os.close(fd)


def _explain(mark: str, reason: object) -> str:
    why = reason[2] if isinstance(reason, tuple) else reason
    return (
        f"skipped a {mark} test with CI set, where every one of them has to run.\n{why}\n"
        "Give the machine what is missing (./dev setup, root), or unset CI."
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    mark = _privileged(item)
    if mark and os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = _explain(mark, report.longrepr)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself while being collected hides all its tests."""
    report = yield
    here = Path(__file__).parent
    place = next((mark for mark in PRIVILEGED if here / mark in collector.path.parents), None)
    if place and os.environ.get("CI") and report.skipped:
        report.outcome = "failed"
        report.longrepr = _explain(place, report.longrepr)
    return report
