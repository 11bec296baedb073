"""Traffic in a lab, seen from outside its namespaces: servers in pods, clients with reports."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator

import msgspec

from lbctl.errors import LbError
from lbctl.lab.cluster import Lab
from lbctl.lab.topology import Pod
from lbctl.lab.traffic.report import Report

# Without site-packages (-S) they start in half the time, and they need none.
TRAFFIC = (sys.executable, "-S", "-m", "lbctl.lab.traffic")
HTTP_PORT = 8080
DNS_PORT = 5353
START_TIMEOUT = 120.0  # a first start compiles the programs


class Client:
    """A traffic client that runs in the background; `finish` ends it and returns its report."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def finish(self, timeout: float = 30.0) -> Report:
        """Tell the client to stop, let it finish what is under way, and read its report."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 60.0) -> Report:
        """Wait until the client has done what it was told; LbError after `timeout` seconds."""
        try:
            output, errors = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LbError(f"a traffic client did not end within {timeout:g} s") from None
        if self._process.returncode != 0:
            raise LbError(f"a traffic client failed: {errors.strip()}")
        return msgspec.json.decode(output, type=Report)

    def kill(self) -> None:
        """End the client without a report; no error if it has ended."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate(timeout=10)


def start_client(lab: Lab, member: str, mode: str, target: str, *options: str) -> Client:
    """Start a client in `member` and wait until it makes requests.

    `python -m lbctl.lab.traffic MODE --help` tells of `options`.
    """
    process = lab.popen(
        member,
        [*TRAFFIC, mode, target, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    client = Client(process)
    assert process.stderr is not None
    ready, _, _ = select.select([process.stderr], [], [], START_TIMEOUT)
    line = process.stderr.readline() if ready else ""
    if line != "started\n":
        client.kill()
        raise LbError(f"{member}: traffic client {mode} {target} did not start: {line.strip()}")
    return client


def run_client(
    lab: Lab, member: str, mode: str, target: str, *options: str, timeout: float = 60.0
) -> Report:
    """Run a client to its end and return its report."""
    return start_client(lab, member, mode, target, *options).wait(timeout)


@contextlib.contextmanager
def background(lab: Lab, member: str, mode: str, target: str, *options: str) -> Iterator[Client]:
    """A client for the time of a block; it is killed at its end if it was not finished."""
    client = start_client(lab, member, mode, target, *options)
    try:
        yield client
    finally:
        client.kill()


def start_http(lab: Lab, pods: Iterable[Pod], port: int = HTTP_PORT) -> None:
    """Start an HTTP server in each pod and wait until they listen. They end with the lab."""
    common = [*TRAFFIC, "http-server", "--port", str(port)]
    lab.serve({pod.name: [*common, "--name", pod.name] for pod in pods})


def start_udp(lab: Lab, pods: Iterable[Pod], port: int = DNS_PORT) -> None:
    """Start a DNS and echo server in each pod and wait until they listen."""
    common = [*TRAFFIC, "udp-server", "--port", str(port)]
    lab.serve({pod.name: [*common, "--name", pod.name, "--identity", pod.ipv4] for pod in pods})


def target(address: str, port: int) -> str:
    """ADDRESS:PORT as clients take it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
