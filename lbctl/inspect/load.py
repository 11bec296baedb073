"""How many flows each endpoint has now, by its address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from lbctl.inspect.flowfilter import LIVE, FlowFilter
from lbctl.inspect.flows import FlowTables, list_flows

# By the text of a service port and address:port of an endpoint.
Load = Mapping[tuple[str, str], int]


def count_flows(tables: FlowTables) -> Load:
    """Those that are not over. Every flow is looked at."""
    return Counter(
        (row.service.text, row.backend)
        for row in list_flows(tables, FlowFilter(states=LIVE))
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
