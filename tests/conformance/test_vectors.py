"""Vectors, answered by `lbctl trace`: the real programs on the maps that a step's objects make."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from tests.support.vector_asking import check_by_command, check_on_one_node
from tests.support.vector_files import SHARED, asked, own_cases, shared_cases

# Where the shared vectors are not, their tests are skipped, in CI too: they are no part of the
# repository. Where they are, they are kernel tests like others.
needs_shared = (
    pytest.mark.kernel
    if any(SHARED.glob("*.json"))
    else pytest.mark.skip(f"no vectors in {SHARED}; LBCTL_CONFORMANCE names their directory")
)

FLOWS = {
    "affinity": 16,
    "clusterip": 14,
    "externalips": 13,
    "healthcheck": 16,
    "loadbalancer": 28,
    "misc": 60,
    "nodeport": 43,
    "policies": 84,
    "terminating": 30,
    "topology": 25,
    "updates": 201,
}


@needs_shared
def test_every_flow_is_asked() -> None:
    found: collections.Counter[str] = collections.Counter()
    for case, _, flows in asked(shared_cases()):
        found[case.file] += len(flows)
    assert dict(found) == FLOWS


@needs_shared
@pytest.mark.parametrize("file", sorted(FLOWS))
def test_shared_vectors(file: str, tmp_path: Path) -> None:
    cases = [case for case in shared_cases() if case.file == file]
    check_by_command(cases, tmp_path)


@pytest.mark.kernel
def test_own_vectors(tmp_path: Path) -> None:
    cases = own_cases()
    assert sum(len(flows) for _, _, flows in asked(cases)) >= 32
    check_by_command(cases, tmp_path)


@needs_shared
def test_shared_steps_one_after_another(tmp_path: Path) -> None:
    cases = [case for case in shared_cases() if len(case.steps) > 1]
    assert any(case.file == "updates" for case in cases)
    check_on_one_node(cases, tmp_path)


@pytest.mark.kernel
def test_own_steps_one_after_another(tmp_path: Path) -> None:
    cases = [case for case in own_cases() if len(case.steps) > 1]
    assert cases
    check_on_one_node(cases, tmp_path)
