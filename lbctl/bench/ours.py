"""The peer lbctl: a real agent on the peer's node, with an API server of the harness's."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lbctl import status
from lbctl.bench.apiserver import ApiServer
from lbctl.bench.dataset import CLIENT_CIDR, SERVICE_CIDR, Dataset
from lbctl.bench.peers import NotFinished
from lbctl.bench.world import POD_INTERFACE, UPLINK, World
from lbctl.errors import LbError
from lbctl.inspect.opened import open_instance
from lbctl.lab import agents

NODE = "node"
POLL = 0.005
LOG_LINES = 2
END_TIMEOUT = 10.0
# Room beyond what is needed: an agent that is nearly full warns.
_SPARE = 1.4
_SOCKETS = "--socket-lb"
_LEAST_SERVICES, _LEAST_ENDPOINTS = 4096, 16384


def _has_option(name: str) -> bool:
    """Whether `lbctl agent` has an option, and with it what the option is about."""
    from lbctl.cli.agent import command

    return any(name in option.opts for option in command.params)


class Agent:
    """`lbctl agent` with tables for the run's services and the default number of flows.

    Compile, load, attach, list and program are all in its load time.
    """

    saved = False

    def __init__(self, name: str, socket_lb: str = "off") -> None:
        self.name = name
        self._socket_lb = socket_lb
        self._world: World | None = None
        self._data: Dataset | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._api: ApiServer | None = None

    def unavailable(self) -> str:
        if self._socket_lb != "off" and not _has_option(_SOCKETS):
            return "not in this version: the agent attaches no socket programs"
        return ""

    def load(self, world: World, data: Dataset, timeout: float) -> float | None:
        self._world, self._data = world, data
        site = world.sites[self.name]
        self._api = ApiServer(site.node, data.all_objects(NODE, site.node_address)).__enter__()
        world.pin_dir(self.name).mkdir(parents=True, exist_ok=True)
        command = world.command(self.name, agents.lbctl_command(*self._arguments()))
        start = time.monotonic()
        with self._log().open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=agents.environment(),
                cwd="/",
                start_new_session=True,  # a Ctrl-C is for the harness, which ends it
            )
        self._wait_ready(start + timeout, timeout)
        return time.monotonic() - start

    def _arguments(self) -> list[str]:
        assert self._world is not None
        assert self._api is not None
        assert self._data is not None
        services = max(_LEAST_SERVICES, int(self._data.services * _SPARE))
        endpoints = max(_LEAST_ENDPOINTS, int(self._data.services * self._data.endpoints * _SPARE))
        return [
            "agent",
            *("--api-server", self._api.url),
            *("--node-name", NODE),
            *("--pin-dir", str(self._world.pin_dir(self.name))),
            *("--cgroup", str(self._world.pods_cgroup(self.name))),
            *((_SOCKETS, self._socket_lb) if _has_option(_SOCKETS) else ()),
            *("--pod-interface", POD_INTERFACE),
            *("--uplink", UPLINK),
            *("--service-cidr", SERVICE_CIDR),
            *("--cluster-cidr", CLIENT_CIDR),
            *("--services", str(services)),
            *("--endpoints", str(endpoints)),
        ]

    def _wait_ready(self, deadline: float, timeout: float) -> None:
        assert self._world is not None
        assert self._data is not None
        assert self._process is not None
        while True:
            said = status.read(self._world.pin_dir(self.name))
            if said and said.ready and said.services == self._data.services:
                if said.socket_lb not in ("", self._socket_lb):
                    raise LbError(f"the agent's socket programs are {said.socket_lb!r}")
                return
            if self._process.poll() is not None:
                raise LbError(f"the agent ended: {self._log_end()}")
            if time.monotonic() > deadline:
                raise NotFinished(f"not finished in {timeout:g} s")
            time.sleep(POLL)

    def change(self, old: Sequence[str], new: Sequence[str]) -> None:
        assert self._data is not None
        assert self._api is not None
        self._api.modify(self._data.changed_slice(new))

    def kernel_memory(self) -> int | None:
        """All maps, as the kernel counts them."""
        assert self._world is not None
        with open_instance(self._world.pin_dir(self.name)) as instance:
            return sum(instance.map(name).memory_bytes for name in instance.map_names())

    def agent_memory(self) -> int | None:
        """Resident memory of the agent, the pages of shared libraries included."""
        if self._process is None:
            return None
        for line in Path("/proc", str(self._process.pid), "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(END_TIMEOUT)
            self._process = None
        if self._api is not None:
            self._api.__exit__()
            self._api = None

    def _log(self) -> Path:
        assert self._world is not None
        return self._world.directory(self.name) / "agent.log"

    def _log_end(self) -> str:
        return " / ".join(self._log().read_text(errors="replace").splitlines()[-LOG_LINES:])
