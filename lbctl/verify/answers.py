"""An explanation, with what the agent says of the service and what the kernel has beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from msgspec.structs import replace

from lbctl import status
from lbctl.addresses import format_address, format_endpoint
from lbctl.errors import LbError, NotFound
from lbctl.inspect import services
from lbctl.inspect.opened import open_instance
from lbctl.model.records import ServiceObjects
from lbctl.resolve.service import resolve
from lbctl.resolve.why import Origin, Reason
from lbctl.sources import targets
from lbctl.verify.explain import ExplainedPort, Explanation, Group, explain
from lbctl.verify.objects import Known


def explained(
    objects: ServiceObjects,
    known: Known,
    origin: Origin,
    port: str | None,
    pin_dir: Path,
    notes: Iterable[str],
) -> Explanation:
    """What the objects mean; of this node's own agent also what it says (another service has the
    address, there is no room), and whether the kernel has the same."""
    found = _explained(objects, known, origin, port, pin_dir, notes)
    return _with_pods(found, objects, known)


def _with_pods(found: Explanation, objects: ServiceObjects, known: Known) -> Explanation:
    """The same with the pods' names, which no record has: the slices are read once more."""
    assert objects.service is not None
    source = known.source
    try:
        if source.manifests:
            names = targets.of_files(Path(source.manifests))
        else:
            file = Path(source.kubeconfig) if source.kubeconfig else None
            names = targets.of_api(file, source.api_server or None, objects.service.key.namespace)
    except LbError:
        return found  # addresses are enough
    called = {format_address(address): target.name for address, target in names.items()}
    ports = tuple(
        replace(port, groups=tuple(_group_with_pods(group, called) for group in port.groups))
        for port in found.ports
    )
    return replace(found, ports=ports)


def _group_with_pods(group: Group, called: Mapping[str, str]) -> Group:
    def pod(endpoint: str) -> str:
        return called.get(endpoint.rpartition(":")[0].strip("[]"), "")

    return replace(group, endpoints=tuple(replace(e, pod=pod(e.endpoint)) for e in group.endpoints))


def _explained(
    objects: ServiceObjects,
    known: Known,
    origin: Origin,
    port: str | None,
    pin_dir: Path,
    notes: Iterable[str],
) -> Explanation:
    assert objects.service is not None
    if not known.agents:
        return explain(objects, known.node, origin, port, [*notes, *_rivals(objects, known)])
    said = status.read_troubles(pin_dir).get(str(objects.service.key), ())
    found = explain(objects, known.node, origin, port, [*notes, *said])
    try:
        with open_instance(pin_dir) as instance:
            rows = services.show(instance, str(objects.service.key))
    except NotFound:
        rows = []
    except LbError:  # not root: what the objects mean can be said nevertheless
        return found
    programmed = {row.name.text: row for row in rows}
    ports = tuple(_checked(item, programmed.get(item.name.text)) for item in found.ports)
    return replace(found, ports=ports)


def _rivals(objects: ServiceObjects, known: Known) -> Iterator[str]:
    """Who else asks for an address of it. Who has it, the agent says, or `lbctl trace`."""
    own = set(_places(objects, known))
    for key, others in known.services.items():
        if others is not objects:
            for place in sorted(own.intersection(_places(others, known))):
                where = format_endpoint(*place[:2])
                yield f"{key} asks for {where} too; `lbctl trace` says who has it"


def _places(objects: ServiceObjects, known: Known) -> Iterator[tuple[bytes, int, int]]:
    if objects.service is not None:
        for port in resolve(objects.service, (), known.node):
            yield from ((f.address, f.port, f.protocol) for f in port.frontends)


def _checked(port: ExplainedPort, row: services.ServiceRow | None) -> ExplainedPort:
    return replace(port, groups=tuple(_compared(group, row) for group in port.groups))


def _compared(group: Group, row: services.ServiceRow | None) -> Group:
    # Those of weight 0 are in the sets too.
    wanted = {e.endpoint for e in group.endpoints if e.used or e.reason == Reason.WEIGHT_0}
    name = group.policy.lower()
    has = {b.endpoint for b in row.backends if name in b.sets} if row else set()
    return replace(group, programmed=has == wanted)
