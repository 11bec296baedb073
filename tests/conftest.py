"""What every test run shares: root for the tests that need it, and no silent skips in CI."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import structlog

PRIVILEGED = ("kernel", "lab")


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
