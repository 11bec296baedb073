"""What fault tests look at from outside: what nodes serve and say, and who answers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lbctl import status
from lbctl.inspect import services
from lbctl.inspect.opened import open_instance
from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import JsonObject, Port
from tests.lab.support.labs import PORT, PORTS, TCP, UDP, ask, client, endpoint
from tests.lab.support.remote_sockets import RemoteProcess
from tests.support.waiting import wait_until

OLD, NEW = "2020-01-01T00:00:00Z", "2026-01-01T00:00:00Z"
NOBODY = "nobody"
PATIENCE = 15.0
Kind = socket.SocketKind
Served = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def served(lab: Lab, node: str) -> Served:
    """What a node serves: by service port its addresses (without the node's own, at which its node
    ports are) and its backends."""
    own = lab.node(node).addresses
    with open_instance(lab.pin_dir(node)) as instance:
        names = {(row.name.namespace, row.name.service) for row in services.list_services(instance)}
        rows = [
            row
            for namespace, name in sorted(names)
            for row in services.show(instance, f"{namespace}/{name}")
        ]
    return {
        row.name.text: (
            tuple(sorted(a.endpoint for a in row.addresses if a.address not in own)),
            tuple(sorted(f"{backend.address} {backend.port}" for backend in row.backends)),
        )
        for row in rows
    }


def frontends(lab: Lab, node: str, service: str) -> set[tuple[str, int]]:
    """Address and port of everything that leads to a service on a node; none if it is not there."""
    with open_instance(lab.pin_dir(node)) as instance:
        return {
            (address.address, address.port)
            for row in services.list_services(instance)
            if row.name.service == service
            for address in row.addresses
        }


def wait_frontends(
    lab: Lab, node: str, service: str, wanted: set[tuple[str, int]], seconds: float = PATIENCE
) -> None:
    """Wait until all these lead to a service on a node."""
    wait_until(
        lambda: wanted <= frontends(lab, node, service),
        seconds,
        lambda: f"{service} on {node} has {frontends(lab, node, service)}, not {wanted}",
    )


def lines(lab: Lab, node: str, *words: str) -> list[str]:
    """Every text in the status of a node's agent in which all these words are."""
    try:
        content = json.loads(status.path_of(lab.pin_dir(node)).read_bytes())
    except FileNotFoundError:
        return []
    return [text for text in _texts(content) if all(word in text for word in words)]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def wait_said(lab: Lab, node: str, *words: str) -> list[str]:
    """Wait until the status of a node has a text with all these words."""
    wait_until(
        lambda: lines(lab, node, *words),
        PATIENCE,
        lambda: f"{node} never says {words}, but {lines(lab, node)[-20:]}",
    )
    return lines(lab, node, *words)


def wait_silent(lab: Lab, node: str, *words: str) -> None:
    """Wait until the status of a node has no such text any more."""
    wait_until(lambda: not lines(lab, node, *words), PATIENCE, lambda: f"{node} still says {words}")


def logged(lab: Lab, node: str, word: str) -> int:
    """How many lines of a node's log have this word."""
    return lab.paths.log(node).read_text(errors="replace").count(word)


def fresh_agent(lab: Lab, node: str) -> None:
    """End a node's agent, remove all it has programmed, and start another from nothing."""
    lab.stop_agent(node)
    cleanup = lbctl_command("cleanup", "--yes", "--pin-dir", str(lab.pin_dir(node)))
    lab.exec(node, cleanup, check=True)
    lab.start_agent(node)
    lab.wait_ready([node])  # its maps are complete before its programs are in place


def aged(objects: Sequence[JsonObject], created: str, uid: str = "") -> list[JsonObject]:
    """The same objects, with the time of their creation, and their uid."""
    about = {"creationTimestamp": created, **({"uid": uid} if uid else {})}
    return [{**item, "metadata": {**item["metadata"], **about}} for item in objects]


def service(
    lab: Lab,
    name: str,
    members: Iterable[str],
    ports: Sequence[Port] = PORTS,
    spec: Mapping[str, Any] | None = None,
    **more: Any,
) -> list[JsonObject]:
    """A service of these members."""
    found = [endpoint(lab, member) for member in members]
    return lab.service(name, ports, found, spec=spec, **more)


def answers(
    lab: Lab,
    member: str,
    address: str,
    port: int = PORT,
    kinds: Iterable[Kind] = (TCP, UDP),
    times: int = 4,
) -> set[str]:
    """Who answers a member's new connections and datagrams, "nobody" where nobody does."""
    found = set()
    for number in range(times):
        for kind in kinds:
            with client(lab, member, int(":" in address), kind) as sock:
                sock.settimeout(1)
                try:
                    sock.connect((address, port))
                    found.add(ask(sock, f"turn {number}").server)
                except OSError:
                    found.add(NOBODY)
    return found


def wait_answers(
    lab: Lab, member: str, address: str, wanted: set[str], kinds: Sequence[Kind] = (TCP, UDP)
) -> None:
    """Wait until exactly these answer a member."""
    wait_until(
        lambda: answers(lab, member, address, kinds=kinds) == wanted,
        PATIENCE,
        lambda: f"{answers(lab, member, address, kinds=kinds)} answer {member} at {address}",
    )


def answers_process(
    process: RemoteProcess, address: str, port: int, family: int | None = None, times: int = 3
) -> set[str]:
    """The same for sockets of a process in the lab, which the programs at sockets see."""
    found = set()
    for number in range(times):
        for kind in (TCP, UDP):
            sock = process.open(kind, int(":" in address) if family is None else family)
            try:
                sock.settimeout(1)
                sock.connect([address, port])
                found.add(sock.ask(f"turn-{number}"))
            except OSError:
                found.add(NOBODY)
            sock.close()
    return found
