"""The node that balances from outside is lost, and another one takes its place in the route: what
Maglev chose and answers straight back, goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.cluster import Lab
from lbctl.lab.topology import EXTERNAL_CIDRS
from tests.lab.support.external import Exposed
from tests.lab.support.labs import TCP, Responder, ask, client, endpoint

pytestmark = pytest.mark.lab
BACKENDS = ("pod3", "pod6")  # both on node3
SERVICE = Exposed("kept", 1)
CONNECTIONS = 20


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("bl", nodes=3, pods=2)
    with Responder() as responder:
        responder.serve(made, BACKENDS)
        endpoints = [endpoint(made, member) for member in BACKENDS]
        objects = SERVICE.objects(made, endpoints)
        objects[0]["metadata"]["annotations"] = {
            "lbctl/algorithm": "maglev",
            "lbctl/forwarding": "dsr",
        }
        made.apply(SERVICE.name, objects)
        made.wait_programmed(f"default/{SERVICE.name}", endpoints)
        yield made
    made.down()


def lead_to(lab: Lab, node: str) -> None:
    """What is asked from outside goes by that node from now on."""
    for cidr, via in zip(EXTERNAL_CIDRS, lab.node(node).addresses, strict=True):
        lab.exec("outside", ["ip", "route", "replace", cidr, "via", via], check=True)


def test_connections_outlive_the_node_that_balanced_them(lab: Lab) -> None:
    with contextlib.ExitStack() as undo:
        talks = []
        for family in (0, 1):
            for _ in range(CONNECTIONS):
                sock = undo.enter_context(client(lab, "outside", family, TCP))
                sock.connect(SERVICE.where(lab, "ingress", family))
                talks.append((sock, ask(sock, "first")))
        assert {reply.server for _, reply in talks} == set(BACKENDS)
        lab.exec("node1", ["ip", "link", "set", "eth0", "down"], check=True)
        lead_to(lab, "node2")
        for sock, first in talks:
            reply = ask(sock, "and on")
            assert (reply.server, reply.connection) == (first.server, first.connection)
            assert reply.client == first.client
