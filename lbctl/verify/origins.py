"""Where traffic comes from, as one node sees it: what `--from` of `lbctl explain` may be."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from lbctl.addresses import format_address, parse_address
from lbctl.errors import LbError, NotFound, UsageError
from lbctl.model.records import Node, ServiceObjects
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.why import Origin
from lbctl.sources import targets, whereabouts
from lbctl.sources.asking import HttpError
from lbctl.sources.whereabouts import Ranges
from lbctl.verify.objects import Known

_FORBIDDEN, _NOT_FOUND = 403, 404
WORDS: Final = ", ".join(Origin)


def origin(source: str, known: Known) -> tuple[Origin, str]:
    """Of a word of Origin, an address, a node's name or a pod's, NAMESPACE/NAME; and a note on how
    that is known. Raises UsageError, NotFound, SourceError."""
    if source in [*Origin]:
        return Origin(source), ""
    try:
        address = parse_address(source)
    except ValueError:
        if "/" in source:
            return _of_pod(source, known)
        return _of_node(source, known)
    return origin_of(address, known.services.values(), known.node, lambda: _nodes(known))


def origin_of(
    address: bytes,
    objects: Iterable[ServiceObjects],
    node: NodeFacts,
    nodes: Callable[[], Iterable[Node]] = tuple,
) -> tuple[Origin, str]:
    """Where traffic with this source comes from, as this node sees it. `nodes` are asked for if
    nothing else says whose the address is."""
    text = format_address(address)
    if node.has(address):
        return Origin.NODE, f"{text} is an address of {node.name}"
    for found in objects:
        for part in found.slices:
            for endpoint in part.endpoints:
                if endpoint.address == address and endpoint.node:
                    here = endpoint.node == node.name
                    return (
                        Origin.POD if here else Origin.OUTSIDE,
                        f"{text} is an endpoint on {endpoint.node}",
                    )
    inside = any(address in prefix for prefix in node.cluster_cidrs)
    if whose := Ranges(nodes()).of(address):
        origin = Origin.POD if whose == node.name else Origin.OUTSIDE
        return origin, f"{text} is in the range of pods of {whose}"
    if inside:
        return Origin.POD, f"{text} is in the pod range; taken for a pod of {node.name}"
    return Origin.OUTSIDE, f"{text} is no address of this node nor of a pod"


def _of_pod(name: str, known: Known) -> tuple[Origin, str]:
    """By the endpoints' names, else by asking for the pod itself."""
    if name.count("/") > 1 or name.startswith("/") or name.endswith("/"):
        raise UsageError(f"--from {name!r} is no pod's name", "It is NAMESPACE/NAME.")
    source = known.source
    file = Path(source.kubeconfig) if source.kubeconfig else None
    server = source.api_server or None
    if source.manifests:
        found = targets.of_files(Path(source.manifests))
    else:
        found = targets.of_api(file, server)
    for address, target in found.items():
        if target.name == name:
            return _on(name, target.node, known, own=known.node.has(address))
    if source.manifests:
        near = difflib.get_close_matches(name, {t.name for t in found.values() if t.name})
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise NotFound(f"no endpoint of these objects is pod {name}", f"{hint}{_ADDRESS}")
    namespace, _, short = name.partition("/")
    try:
        pod = whereabouts.pod_of_api(file, server, namespace, short)
    except HttpError as error:
        raise _no_pod(name, error) from error
    if not pod.spec.node_name:
        raise NotFound(f"pod {name} runs on no node yet")
    return _on(name, pod.spec.node_name, known, own=pod.spec.host_network)


_ADDRESS: Final = "Its address will do as well."


def _no_pod(name: str, error: HttpError) -> LbError:
    if error.status == _NOT_FOUND:
        return NotFound(f"there is no pod {name}")
    if error.status != _FORBIDDEN:
        return error
    return NotFound(
        f"pod {name} is no endpoint, and the agent may not read other pods",
        "Give --kubeconfig FILE of somebody who may, or ask by `kubectl lbctl explain`. "
        f"{_ADDRESS}",
    )


def _on(name: str, node: str, known: Known, *, own: bool) -> tuple[Origin, str]:
    """`own`: with the node's own address."""
    here = known.node.name
    if node != here:
        return Origin.OUTSIDE, (
            f"{name} runs on {node}, which decides about its traffic: ask there, or with "
            f"--node-name {node}. To {here} it comes from outside"
        )
    if own:
        return Origin.NODE, f"{name} has the address of {here} itself"
    return Origin.POD, f"{name} runs on {here}"


def _of_node(name: str, known: Known) -> tuple[Origin, str]:
    here = known.node.name
    if name == here:
        return Origin.NODE, ""
    names = _node_names(known)
    if name in names:
        return Origin.OUTSIDE, f"{name} is another node: to {here} its traffic comes from outside"
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        f"--from {name!r} is neither {WORDS} nor an address or a known node",
        f"{hint}A pod is written NAMESPACE/NAME.",
    )


def _node_names(known: Known) -> set[str]:
    """All of them, and those that only endpoints name."""
    names = {name for name, _ in known.zones}
    names |= {
        endpoint.node
        for found in known.services.values()
        for part in found.slices
        for endpoint in part.endpoints
        if endpoint.node
    }
    return names | {node.name for node in _nodes(known)}


def _nodes(known: Known) -> list[Node]:
    """This one alone if they may not be listed."""
    source = known.source
    if source.manifests:
        return whereabouts.nodes_of_files(Path(source.manifests))
    file = Path(source.kubeconfig) if source.kubeconfig else None
    try:
        return whereabouts.nodes_of_api(file, source.api_server or None)
    except HttpError:
        return [known.object] if known.object else []
