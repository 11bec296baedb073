"""Waits until the agents of a lab have done something. Looks at their maps, never asks them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from lbctl import status
from lbctl.errors import LbError, NotFound
from lbctl.inspect import services
from lbctl.inspect.opened import open_instance
from lbctl.inspect.services import ServiceRow
from lbctl.lab.state import Paths, State
from lbctl.lab.topology import Pod

TIMEOUT = 30.0  # seconds; the first start on a machine compiles the programs
POLL = 0.01
LOG_LINES = 15


def wait_programmed(
    state: State,
    paths: Paths,
    service: str,
    pods: Iterable[Pod],
    nodes: Sequence[str] = (),
    timeout: float = TIMEOUT,
) -> None:
    """Wait until `service` (NAMESPACE/NAME) leads to exactly `pods`, on the nodes named (or all).

    The service must have an address in each family it is programmed for. LbError after `timeout`
    seconds, or at once if an agent has ended.
    """
    wanted = tuple(pods)

    def done(rows: list[ServiceRow]) -> bool:
        return bool(rows) and all(_leads_to(row, wanted) for row in rows)

    names = ", ".join(pod.name for pod in wanted) or "no pod"
    what = f"service {service} to lead to {names}"
    _wait(state, paths, nodes, lambda node: done(_rows(paths, node, service)), what, timeout)


def wait_ready(
    state: State,
    paths: Paths,
    nodes: Sequence[str] = (),
    timeout: float = TIMEOUT,
) -> None:
    """Wait until the agents of the nodes named (or all) say that they are ready.

    That is: every object read and programmed, and programs attached to all pods' links. What an
    earlier agent of the node said does not count.
    """

    def ready(node: str) -> bool:
        agent = state.agents.get(node)
        said = status.read(paths.pin_dir(node))
        if agent is None or said is None:
            return False
        return said.ready and said.pid == agent.pid and agent.running

    _wait(state, paths, nodes, ready, "the agent to be ready", timeout)


def wait_attached(
    state: State,
    paths: Paths,
    nodes: Sequence[str] = (),
    timeout: float = TIMEOUT,
) -> None:
    """Wait until programs are attached to the links of all pods, on the nodes named (or all)."""

    def attached(node: str) -> bool:
        links = paths.pin_dir(node) / "links"
        return all(
            (links / f"{pod.interface}-{direction}").exists()
            for pod in state.topology.pods
            if pod.node == node
            for direction in ("ingress", "egress")
        )

    _wait(state, paths, nodes, attached, "programs on the links of all pods", timeout)


def wait_gone(
    state: State,
    paths: Paths,
    service: str,
    nodes: Sequence[str] = (),
    timeout: float = TIMEOUT,
) -> None:
    """Wait until `service` has no addresses left on the nodes named (or all)."""

    def gone(node: str) -> bool:
        return not any(row.addresses for row in _rows(paths, node, service))

    _wait(state, paths, nodes, gone, f"service {service} to go", timeout)


def _leads_to(row: ServiceRow, pods: tuple[Pod, ...]) -> bool:
    family = 1 if row.name.family == "v6" else 0
    expected = {pod.addresses[family] for pod in pods}
    return bool(row.addresses) and {backend.address for backend in row.backends} == expected


def _wait(
    state: State,
    paths: Paths,
    nodes: Sequence[str],
    done: Callable[[str], bool],
    what: str,
    timeout: float,
) -> None:
    deadline = time.monotonic() + timeout
    for node in nodes or [node.name for node in state.topology.nodes]:
        while not done(node):
            agent = state.agents.get(node)
            if agent is not None and not agent.running:
                raise LbError(f"the agent of {node} has ended", _log_tail(paths, node))
            if time.monotonic() > deadline:
                raise LbError(
                    f"waited {timeout:g} s in vain for {what} on {node}", _log_tail(paths, node)
                )
            time.sleep(POLL)


def _rows(paths: Paths, node: str, service: str) -> list[ServiceRow]:
    """What is programmed; nothing while the instance or the service does not exist."""
    try:
        with open_instance(paths.pin_dir(node)) as instance:
            return services.show(instance, service)
    except NotFound:
        return []


def _log_tail(paths: Paths, node: str) -> str:
    """The last lines a node's agent has written."""
    path = paths.log(node)
    if not path.exists():
        return f"{node} has no agent; start it with start_agent()."
    lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join([f"The end of {path}:", *lines])
