"""The objects and the node that a question is about: from files, from the API as it is now, or from
wherever the agent of this node has them."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from lbctl.config import standing
from lbctl.config.standing import SourcePlace, Standing
from lbctl.errors import NotFound, SourceError, UsageError
from lbctl.model.records import Node, ObjectKey, ServiceObjects
from lbctl.model.updates import Source
from lbctl.resolve.node import NodeFacts
from lbctl.trace import situation

# For all lists together: an API server that is there answers far sooner.
LISTING_SECONDS: Final = 60.0
Objects = dict[ObjectKey, ServiceObjects]


class Question(msgspec.Struct, frozen=True):
    """What the command line says of it; everything may be left out where an agent has run."""

    pin_dir: Path
    manifests: Path | None = None
    kubeconfig: Path | None = None
    api_server: str = ""
    node_name: str = ""
    config: Path | None = None
    local_ips: Sequence[str] = ()
    service_cidrs: Sequence[str] = ()


class Known(msgspec.Struct, frozen=True):
    """What there is to go by. `agents`: the node is as the agent of `pin_dir` has it, by its
    `standing`."""

    services: Objects
    node: NodeFacts
    object: Node | None
    zones: tuple[tuple[str, str], ...]  # names and zones of all nodes that are known
    place: str  # where the objects are from, for people
    problems: tuple[str, ...]  # objects, or parts of them, that could not be read
    standing: Standing | None
    agents: bool
    source: SourcePlace = SourcePlace()  # the same place, for who asks more


def know(question: Question, say: Callable[[str], None]) -> Known:
    """Read it all. Raises UsageError if there is nothing to go by, SourceError, ConfigError."""
    said = standing.read(question.pin_dir)
    place = _place(question, said)
    agents = said is not None and _is_agents(question, said)
    name = said.node.name if said and agents else question.node_name
    if place.manifests:
        services, nodes, problems = _of_files(Path(place.manifests))
    else:
        if not name:
            raise UsageError("--node-name is missing", "Say which node to answer for.")
        services, node, problems = _of_api(place, name)
        nodes = {node.name: node} if node else {}
    zones = tuple((node.name, node.zone) for node in nodes.values())
    if said and agents:
        facts = said.node
    else:
        facts = situation.node(
            nodes, name, question.config, question.local_ips, question.service_cidrs, say
        )
    return Known(
        services=services,
        node=facts,
        object=nodes.get(facts.name),
        zones=zones,
        place=_described(place),
        problems=problems,
        standing=said,
        agents=agents,
        source=place,
    )


def _place(question: Question, said: Standing | None) -> SourcePlace:
    if question.manifests is not None:
        return SourcePlace(manifests=str(question.manifests))
    if question.kubeconfig is not None or question.api_server:
        file = question.kubeconfig
        return SourcePlace(kubeconfig=str(file) if file else "", api_server=question.api_server)
    if said is None:
        raise UsageError(
            f"no agent has run at {question.pin_dir}, so it is unknown where to read objects from",
            "Give --manifests PATH, --kubeconfig FILE or --api-server URL, or the --pin-dir of an "
            "instance.",
        )
    return said.source


def _is_agents(question: Question, said: Standing) -> bool:
    own = question.config or question.local_ips or question.service_cidrs
    return not own and question.node_name in ("", said.node.name)


def _of_files(path: Path) -> tuple[Objects, dict[str, Node], tuple[str, ...]]:
    from lbctl.sources.documents import load_manifests

    found = load_manifests(path)
    return found.services, found.nodes, found.remarks


def _of_api(place: SourcePlace, name: str) -> tuple[Objects, Node | None, tuple[str, ...]]:
    from lbctl.sources.kubernetes import KubernetesSource

    file = Path(place.kubeconfig) if place.kubeconfig else None
    source = KubernetesSource(name, kubeconfig=file, api_server=place.api_server or None)
    return list_once(source)


def list_once(source: Source) -> tuple[Objects, Node | None, tuple[str, ...]]:
    """Start a source, take what it has once it has everything, and stop it. Raises SourceError."""
    services: Objects = {}
    until = time.monotonic() + LISTING_SECONDS
    source.start()
    try:
        while (left := until - time.monotonic()) > 0:
            update = source.wait(left)
            if update is None:
                continue
            if update.synced:
                services.update(update.services)
                wanted = {k: o for k, o in services.items() if o.service is not None}
                return wanted, update.node, update.status.problems
            if update.status.last_error:
                raise SourceError(f"cannot read the objects: {update.status.last_error}")
        raise SourceError(f"the API server did not list all objects in {LISTING_SECONDS:.0f} s")
    finally:
        source.stop()


def _described(place: SourcePlace) -> str:
    if place.manifests:
        return place.manifests
    return f"the API ({place.api_server or place.kubeconfig or 'service account'})"


def find(services: Objects, query: str) -> tuple[ServiceObjects, str | None]:
    """The service that `query` means (NAME or NAMESPACE/NAME, either with :PORT), and the port's
    name if it says one. Raises NotFound with near names, UsageError if it may be several."""
    name, colon, port = query.partition(":")
    found = [o for key, o in services.items() if name in (str(key), key.name)]
    if len(found) > 1:
        listed = ", ".join(sorted(str(o.service.key) for o in found if o.service))
        raise UsageError(f"there are several services {name!r}", f"Say which: {listed}.")
    if not found:
        raise NotFound(f"there is no service {name!r}", _nearest(name, services))
    return found[0], port if colon else None


def _nearest(name: str, services: Objects) -> str:
    """Of full names, or for one without a namespace of names alone."""
    called = {str(key) if "/" in name else key.name: str(key) for key in services}
    near = difflib.get_close_matches(name, called, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(called[text] for text in near)}?"
    return f"There are {len(services)} services; `lbctl service list` lists those of this node."
