"""The vectors with another algorithm or forwarding as the cluster's default: who may answer is the
same in all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.test_vectors import FLOWS, needs_shared
from tests.support.vector_asking import MODES, Mode, check_by_command, check_on_one_node
from tests.support.vector_files import own_cases, shared_cases

EACH = pytest.mark.parametrize("mode", MODES, ids=str)


@needs_shared
@EACH
def test_shared_vectors(mode: Mode, tmp_path: Path) -> None:
    assert check_on_one_node(shared_cases(), tmp_path, mode) == sum(FLOWS.values())


@pytest.mark.kernel
@EACH
def test_own_vectors(mode: Mode, tmp_path: Path) -> None:
    assert check_on_one_node(own_cases(), tmp_path, mode) >= 32


@needs_shared
def test_shared_vectors_through_the_command(tmp_path: Path) -> None:
    """As whoever has such a configuration asks."""
    cases = [case for case in shared_cases() if case.file in ("nodeport", "externalips")]
    check_by_command(cases, tmp_path, Mode("maglev", "dsr"))


@pytest.mark.kernel
def test_own_vectors_through_the_command(tmp_path: Path) -> None:
    check_by_command(own_cases(), tmp_path, Mode("maglev", "dsr"))
