"""How many flows each endpoint has now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from lbctl.inspect.backends import BackendRow
from lbctl.inspect.flowfilter import FlowFilter
from lbctl.inspect.flows import FlowTables, list_flows

# By the text of a service port and address:port of an endpoint.
Load = Mapping[tuple[str, str], int]


def count_flows(tables: FlowTables, services: Sequence[int] | None = None) -> Load:
    """Every flow is looked at, or those of the services with these ids are."""
    wanted = FlowFilter(services=None if services is None else tuple(services))
    return Counter(
        (row.service.text, row.backend)
        for row in list_flows(tables, wanted)
        if row.kind != "direct"
    )


def count_by_state(tables: FlowTables) -> Mapping[tuple[str, str], tuple[int, int]]:
    """The same, established connections of TCP and all others apart."""
    active, others = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row in list_flows(tables, FlowFilter()):
        if row.kind != "direct":
            counter = active if row.state == "established" else others
            counter[row.service.text, row.backend] += 1
    return {key: (active[key], others[key]) for key in active.keys() | others.keys()}


def with_flows(rows: Sequence[BackendRow], load: Load) -> list[BackendRow]:
    """The same rows, with their flows. Of two records of one endpoint (it left, and came back) the
    one that serves has them."""
    counted = {(row.service.text, row.endpoint): row for row in rows}
    counted |= {(row.service.text, row.endpoint): row for row in rows if row.serving}
    return [
        msgspec.structs.replace(
            row,
            flows=load.get((row.service.text, row.endpoint), 0)
            if counted[row.service.text, row.endpoint] is row
            else 0,
        )
        for row in rows
    ]
