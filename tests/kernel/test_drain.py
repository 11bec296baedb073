"""`lbctl drain --simulate`: the programs' verdicts are the resolver's."""

from __future__ import annotations

import itertools

import pytest

from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.verify import drain, drainprograms
from lbctl.verify.drain import View
from tests.kernel.support.endpoint_sets import CLOSED, NODE, SETS, objects

pytestmark = pytest.mark.kernel


def test_programs_and_resolver_agree() -> None:
    changes: dict[ObjectKey, tuple[ServiceObjects, ServiceObjects]] = {}
    policies = ("Cluster", "Local")
    for number, (name, internal, external) in enumerate(
        itertools.product([*SETS, *CLOSED], policies, policies)
    ):
        plain, closed = CLOSED.get(name, (name, []))
        made = objects(SETS[plain], internal, external, number, closed)
        assert made.service
        changes |= drain.affected({made.service.key: made}, "worker-2")
    assert len(changes) == 36
    asked = drainprograms.verdicts(changes, NODE)
    assert asked == drain.resolvers_verdicts(changes, View("", NODE))
    assert {("forward", "reject"), ("forward", "drop"), ("forward", "forward")} & {*asked.values()}
