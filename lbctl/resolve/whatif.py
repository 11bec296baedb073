"""Slices as they would be: with an endpoint ready, or without the endpoints of a node. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from lbctl.model.records import EndpointSlice, SliceEndpoint

Slices = tuple[EndpointSlice, ...]


def with_ready(slices: Iterable[EndpointSlice], address: bytes) -> Slices:
    """The endpoint at this address is ready."""

    def ready(endpoint: SliceEndpoint) -> SliceEndpoint:
        if endpoint.address != address:
            return endpoint
        return msgspec.structs.replace(endpoint, ready=True, serving=True, terminating=False)

    return _each(slices, ready)


def without_node(slices: Iterable[EndpointSlice], node: str) -> Slices:
    """The node is gone, and with it what runs there."""
    return _each(slices, lambda endpoint: None if endpoint.node == node else endpoint)


def _each(
    slices: Iterable[EndpointSlice], change: Callable[[SliceEndpoint], SliceEndpoint | None]
) -> Slices:
    return tuple(
        msgspec.structs.replace(
            part, endpoints=tuple(e for old in part.endpoints if (e := change(old)) is not None)
        )
        for part in slices
    )
