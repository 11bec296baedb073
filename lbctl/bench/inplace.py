"""A connection to a service against one to its pods, on a real node as it is: changes nothing.

It needs no privileges and knows not who translates: whoever does, kube-proxy or lbctl, is the peer
called "node".
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable

import msgspec
import numpy as np

from lbctl.bench import machine
from lbctl.bench.generator_py import client
from lbctl.bench.measures import paired
from lbctl.bench.records import FLOOR, NODE, Distribution, Results, summary
from lbctl.errors import LbError, UsageError

WARM_UP = 20
# A pod that is busy drops a SYN when its queue is full; the client's next one comes after a second.
WAIT_SECONDS = 10.0

Address = tuple[str, int]


class Comparison(msgspec.Struct, frozen=True):
    """The service, the addresses of its pods, and how often each is connected to."""

    service: Address
    pods: tuple[Address, ...]
    turns: int
    connections: int
    services: int  # how many the cluster has, for the records; 0 if nobody said


def plan(service: str, pods: str, turns: int, connections: int, services: int) -> Comparison:
    """From HOST:PORT each, where the pods' host may have many addresses. UsageError."""
    first, *_ = _resolve("--service", service)
    return Comparison(first, tuple(_resolve("--pods", pods)), turns, connections, services)


def _resolve(option: str, text: str) -> list[Address]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{option}: {text!r} is not HOST:PORT")
    try:
        found = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise LbError(
            f"{option}: {host} has no IPv4 address: {error}",
            "Headless services name their pods only while those are ready.",
        ) from error
    return sorted({(str(address[0]), int(address[1])) for *_, address in found})


def measure(asked: Comparison, results: Results, progress: Callable[[str, str], None]) -> None:
    """Adds connect_latency of both. LbError if one of them cannot be reached."""
    results.about.machine = machine.facts() | {"generator": "Python"}
    results.about.method = [
        f"{asked.turns} turns of {asked.connections} connections each, in alternating order, to "
        f"the service {asked.service[0]} and to its {len(asked.pods)} pods' own addresses, from "
        "this pod; connect() alone is timed, from Python (about a microsecond is Python's).",
        "The floor is a connection to a pod through the same node. Whatever the node does to every "
        "packet is in both: the ratio shows only what being a service adds.",
    ]
    aims = {FLOOR: itertools.cycle(asked.pods), NODE: itertools.cycle([asked.service])}
    taken: dict[str, list[np.ndarray]] = {name: [] for name in aims}
    for aim in aims.values():
        for _ in range(WARM_UP):
            connect(next(aim))
    for turn in range(asked.turns):
        progress("connections", f"turn {turn + 1} of {asked.turns}")
        for name in (FLOOR, NODE) if turn % 2 else (NODE, FLOOR):
            times = [connect(next(aims[name])) for _ in range(asked.connections)]
            taken[name].append(np.array(times) / 1e3)
    floor = [float(np.median(turn)) for turn in taken[FLOOR]]
    for name, turns in taken.items():
        every = np.concatenate(turns)
        ratio = paired([float(np.median(turn)) for turn in turns], floor)
        results.add([summary(name, asked.services, "connect_latency", every, ratio)])
        percentiles = tuple(round(float(v), 3) for v in np.percentile(every, np.arange(101)))
        results.about.distributions.append(Distribution(name, asked.services, percentiles))


def connect(target: Address) -> int:
    """Nanoseconds of one connect(); the connection is reset at once. LbError if it fails."""
    with client(WAIT_SECONDS) as made:
        start = time.monotonic_ns()
        try:
            made.connect(target)
        except BlockingIOError as error:  # what the kernel calls a time that is over
            raise LbError(
                f"no connection to {target[0]}:{target[1]}: no answer for {WAIT_SECONDS:.0f} s",
                "Its queue may be full, as of a server that cannot keep up: `nstat -az "
                "TcpExtListenDrops` in its pod.",
            ) from error
        except OSError as error:
            raise LbError(f"no connection to {target[0]}:{target[1]}: {error}") from error
        return time.monotonic_ns() - start
