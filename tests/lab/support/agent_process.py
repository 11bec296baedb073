"""A namespace with an uplink, in which agents run as processes, one after the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ebpf import instance
from ebpf.hooks.tc import Attacher
from ebpf.instance import Instance
from lbctl import status
from lbctl.status import StatusRecord
from tests.support.map_contents import contents
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[3]
BOUND = 180.0  # a first start compiles, half a minute of a processor that others use too
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "type": "ClusterIP",
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    },
}


def slice_of(*addresses: str) -> dict[str, Any]:
    """Ready endpoints of SERVICE."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [a], "conditions": {"ready": True}} for a in addresses],
    }


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


class Node:
    """A namespace with an uplink, a pin directory, manifests, and agents one after the other."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.pin_dir = Path("/sys/fs/bpf") / name
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        self.log = directory / "log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.namespaces: list[str] = []
        self.confinement: list[str] = []  # words before the agent's command
        self.add_namespace(name)
        self.add_namespace(f"{name}-out")
        self.add_veth("uplink0", f"{name}-out")
        ip("-n", name, "address", "add", "192.0.2.1/24", "dev", "uplink0")
        ip("-n", name, "route", "add", "default", "via", "192.0.2.2")

    def add_namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self.namespaces.append(name)
        ip("-n", name, "link", "set", "lo", "up")

    def add_veth(self, name: str, peer_namespace: str) -> None:
        ip(
            "-n", self.name, "link", "add", name, "type", "veth",
            "peer", "name", "eth0", "netns", peer_namespace,
        )  # fmt: skip
        ip("-n", peer_namespace, "link", "set", "eth0", "up")
        ip("-n", self.name, "link", "set", name, "up")

    def add_pod(self, name: str) -> None:
        self.add_namespace(f"{self.name}-{name}")
        self.add_veth(name, f"{self.name}-{name}")

    def publish(self, *objects: dict[str, Any]) -> None:
        fresh = self.manifests / ".fresh"
        fresh.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}) + "\n")
        fresh.rename(self.manifests / "objects.json")

    def command(self, *more: str) -> list[str]:
        return [
            "nsenter", f"--net=/run/netns/{self.name}", *self.confinement,
            sys.executable, "-m", "lbctl", "agent",
            "--manifests", str(self.manifests), "--node-name", "node1",
            "--pin-dir", str(self.pin_dir), "--socket-lb", "off",
            "--services", "64", "--endpoints", "256", "--flows", "256", "-v", *more,
        ]  # fmt: skip

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(*more), stderr=log, env=dict(os.environ, PYTHONPATH=str(ROOT))
            )
        self.processes.append(process)
        return process

    def status(self) -> StatusRecord | None:
        return status.read(self.pin_dir)

    def ready(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, self.log.read_text()
        said = self.status()
        return said is not None and said.pid == process.pid and said.ready

    def started(self, *more: str) -> subprocess.Popen[bytes]:
        process = self.start(*more)
        wait_until(lambda: self.ready(process), BOUND)
        return process

    def end(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
        process.send_signal(number)
        return process.wait(BOUND)

    def in_namespace(self, *command: str) -> str:
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.name}", *command],
            check=True, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        return done.stdout

    def attached(self) -> set[str]:
        return set(self.programs())

    def programs(self) -> dict[str, int]:
        """Id of the program by interface and direction."""
        return {
            f"{item.ifname}-{item.direction}": item.prog_id
            for item in Attacher(self.pin_dir, mode="tcx").attachments()
            if item.prog_id
        }

    def sweeps(self) -> int:
        """How many sweeps have ended, by the log of all agents."""
        return self.log.read_text().count(" swept ")

    def contents(self) -> dict[str, Any]:
        with Instance.open(self.pin_dir) as opened:
            return contents(opened)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(BOUND)
        if self.pin_dir.is_dir():
            instance.remove(self.pin_dir)
        status.remove(self.pin_dir)
        for name in self.namespaces:
            ip("netns", "delete", name)
