"""The same verdicts, asked of the real programs: on maps made for the occasion, with the objects as
they are, and then without the node's endpoints."""

from __future__ import annotations

from lbctl.addresses import IPV4, family_of, parse_address
from lbctl.model.records import Protocol, ServiceObjects
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import Frontend, ResolvedPort
from lbctl.resolve.service import resolve
from lbctl.resolve.why import Origin
from lbctl.trace.flows import Arrival, Flow
from lbctl.trace.private import PrivateNode, sizes_for
from lbctl.trace.programs import trace_bundle
from lbctl.verify.drain import Changes, called

_SAMPLES = 4  # a verdict is the same for all
_ARRIVALS: dict[Origin, Arrival] = {
    Origin.POD: "pod",
    Origin.NODE: "node",
    Origin.OUTSIDE: "uplink",
}
_SOMEBODY = {True: parse_address("198.51.100.1"), False: parse_address("2001:db8::1")}


def verdicts(changes: Changes, node: NodeFacts) -> dict[tuple[str, str], tuple[str, str]]:
    """As `resolvers_verdicts` gives them. Raises KernelError, CompileError."""
    before = [now for now, _ in changes.values()]
    after = [then for _, then in changes.values()]
    asked = dict(_questions(before, node))
    with PrivateNode(trace_bundle(), sizes_for(before, node), node) as private:
        found = []
        for services in (before, after):
            private.apply(services, node)
            traced = private.ask(asked.values(), _SAMPLES)
            found.append([one.answer.verdict for one in traced])
    return dict(zip(asked, zip(*found, strict=True), strict=True))


def _questions(
    services: list[ServiceObjects], node: NodeFacts
) -> list[tuple[tuple[str, str], Flow]]:
    found = []
    for objects in services:
        assert objects.service is not None
        for port in resolve(objects.service, objects.slices, node):
            for origin in Origin:
                frontend = called(port, origin)
                if frontend is not None:
                    flow = _flow(port, frontend, origin, node)
                    found.append(((port.name, origin.value), flow))
    return found


def _flow(port: ResolvedPort, frontend: Frontend, origin: Origin, node: NodeFacts) -> Flow:
    family = family_of(frontend.address)
    source = _SOMEBODY[family == IPV4]
    if origin is Origin.NODE:
        source = node.primary(family) or source
    elif port.source_ranges:  # else it would be their fault
        source = port.source_ranges[0].address
    return Flow(
        port.name,
        source,
        frontend.address,
        frontend.port,
        Protocol(frontend.protocol),
        _ARRIVALS[origin],
    )
