"""What is measured of changes on their way into the maps."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from lbctl.agent.syncs import Syncs
from lbctl.instruments import Instruments
from lbctl.model.records import EndpointSlice, ObjectKey, Service, ServiceObjects
from lbctl.model.updates import SourceStatus, Update
from lbctl.reconcile.reconciler import Reconciler
from lbctl.resolve.node import NodeFacts
from tests.support.fake_tables import FakeTables

WEB = ObjectKey("default", "web")
SERVICE = Service(WEB, type="ClusterIP")


def part(name: str, triggered: float = 0.0) -> EndpointSlice:
    return EndpointSlice(ObjectKey("default", name), WEB, 4, triggered=triggered)


class Rig:
    def __init__(self) -> None:
        self.now = 1000.0
        self.instruments = Instruments()
        self.reconciler = Reconciler(FakeTables(), NodeFacts("node1"))
        self.syncs = Syncs(self.instruments, lambda: self.now)

    def take(self, service: Service | None, *slices: EndpointSlice) -> None:
        changed = {WEB: ServiceObjects(service, slices)}
        update = Update(changed, None, False, True, True, SourceStatus())
        self.syncs.noted(update, self.reconciler)
        self.reconciler.take(update)

    def value(self, name: str) -> float:
        registry: CollectorRegistry = self.instruments.registry
        found = registry.get_sample_value(f"kubeproxy_{name}")
        assert found is not None
        return found


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_changes_are_counted_and_pending_until_they_are_written(rig: Rig) -> None:
    first, second = part("a"), part("b")
    rig.take(SERVICE, first, second)
    rig.take(SERVICE, first, part("b"))  # one slice is another object
    rig.take(SERVICE, first)  # one is gone
    assert rig.value("sync_proxy_rules_service_changes_total") == 1
    assert rig.value("sync_proxy_rules_endpoint_changes_total") == 4
    assert rig.value("sync_proxy_rules_endpoint_changes_pending") == 4
    assert rig.value("sync_proxy_rules_last_queued_timestamp_seconds") == 1000
    rig.now += 5
    rig.syncs.written(0.25, full=False)
    assert rig.value("sync_proxy_rules_endpoint_changes_pending") == 0
    assert rig.value("sync_proxy_rules_service_changes_pending") == 0
    assert rig.value("sync_proxy_rules_endpoint_changes_total") == 4
    assert rig.value("sync_proxy_rules_last_timestamp_seconds") == 1005
    rig.take(None)
    assert rig.value("sync_proxy_rules_service_changes_total") == 2
    assert rig.value("sync_proxy_rules_endpoint_changes_total") == 5


def test_programming_is_measured_from_what_triggered_it_once(rig: Rig) -> None:
    rig.take(SERVICE, part("old", triggered=990.0), part("new", triggered=1001.0))
    rig.now = 1003.0
    rig.syncs.written(0.1, full=True)
    rig.syncs.written(0.1, full=False)
    assert rig.value("network_programming_duration_seconds_count") == 1
    assert rig.value("network_programming_duration_seconds_sum") == 2.0
    # A clock that is behind another machine's.
    rig.take(SERVICE, part("new", triggered=1100.0))
    rig.syncs.written(0.1, full=False)
    assert rig.value("network_programming_duration_seconds_sum") == 2.0
    assert rig.value("sync_full_proxy_rules_duration_seconds_count") == 1
    assert rig.value("sync_partial_proxy_rules_duration_seconds_count") == 2
    assert rig.value("sync_proxy_rules_duration_seconds_count") == 3


def test_a_pass_is_complete_after_the_nodes_facts_changed(rig: Rig) -> None:
    reconciler = rig.reconciler
    assert reconciler.complete_pass
    rig.take(SERVICE)
    reconciler.apply(True)
    assert not reconciler.complete_pass
    reconciler.set_node(NodeFacts("node1", zone="a"))
    assert reconciler.complete_pass
    reconciler.apply(True)
    assert not reconciler.complete_pass
