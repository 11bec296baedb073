"""`lbctl explain` against the programs: the same verdict and endpoints, from everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from lbctl.addresses import parse_address
from lbctl.resolve.why import Origin
from lbctl.trace.flows import Arrival, Flow
from lbctl.trace.private import PrivateNode, sizes_for
from lbctl.trace.programs import trace_bundle
from lbctl.verify.explain import explain
from tests.kernel.support.endpoint_sets import CLOSED, NODE, SETS, objects

pytestmark = pytest.mark.kernel

SAMPLES = 60
SOURCES: dict[Origin, tuple[str, Arrival]] = {
    Origin.POD: ("10.0.9.9", "pod"),
    Origin.NODE: ("192.168.0.2", "node"),
    Origin.OUTSIDE: ("198.51.100.9", "uplink"),
}


@pytest.fixture(scope="module")
def private() -> Iterator[PrivateNode]:
    largest = objects(SETS["both"], "Cluster", "Cluster")
    with PrivateNode(trace_bundle(), sizes_for([largest] * 4, NODE), NODE) as made:
        yield made


@pytest.mark.parametrize("name", [*SETS, *CLOSED])
def test_the_programs_do_what_is_explained(private: PrivateNode, name: str) -> None:
    asked = 0
    plain, closed = CLOSED.get(name, (name, []))
    for internal, external in itertools.product(("Cluster", "Local"), repeat=2):
        found = objects(SETS[plain], internal, external, closed=closed)
        private.apply([found], NODE)
        for origin, (source, arrives) in SOURCES.items():
            (port,) = explain(found, NODE, origin).ports
            for group in port.groups:
                for address in group.addresses:
                    host, _, number = address.endpoint.rpartition(":")
                    flow = Flow(
                        address.endpoint,
                        parse_address(source),
                        parse_address(host),
                        int(number),
                        found.service.ports[0].protocol,  # type: ignore[union-attr]
                        arrives,
                    )
                    (traced,) = private.ask([flow], SAMPLES)
                    used = {e.endpoint for e in group.endpoints if e.used}
                    where = f"{internal} {external} {origin} {address}"
                    assert traced.answer.verdict == group.verdict, where
                    assert set(traced.answer.backends) == used, where
                    asked += 1
    assert asked == 4 * 3 * 4
