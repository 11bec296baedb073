"""Flows that lead to what nobody knows: a service without a name, an endpoint without a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ebpf.instance import Instance
from lbctl.inspect import backends, flows
from lbctl.inspect.flowfilter import FlowFilter
from lbctl.verify.difference import Difference


def dangling(instance: Instance) -> Iterator[Difference]:
    """By service, how many of its flows have an endpoint that is not there. Flows that came after
    the endpoints were read may be among them: who asks, asks twice."""
    direct = Counter[str]()
    unknown = Counter[tuple[str, str]]()
    for row in flows.list_flows(instance, FlowFilter()):
        if row.kind == "direct":
            continue
        if not row.service.family and row.service.text.startswith("service id "):
            direct[row.service.text] += 1
        else:
            unknown[row.service.text, row.backend] += 1
    known = {(row.service.text, row.endpoint) for row in backends.list_backends(instance)}
    for name, number in direct.items():
        yield Difference("flow", name, f"{number} flows are of a service without a name")
    for (service, backend), number in unknown.items():
        if (service, backend) not in known:
            yield Difference("flow", service, f"{number} flows to {backend}, which has no record")
