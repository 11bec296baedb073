"""The peer lbctl: a real agent on the peer's node."""

from __future__ import annotations

from collections.abc import Sequence

from lbctl import status
from lbctl.bench.daemon import NODE, Daemon
from lbctl.bench.dataset import CLIENT_CIDR, SERVICE_CIDR, Dataset
from lbctl.bench.testbed import POD_INTERFACE, UPLINK, Testbed
from lbctl.errors import LbError
from lbctl.inspect.opened import open_instance
from lbctl.lab import agents

# Room beyond what is needed: an agent that is nearly full warns.
_SPARE = 1.4
_LEAST_SERVICES, _LEAST_ENDPOINTS = 4096, 16384


class AgentPeer(Daemon):
    """`lbctl agent` with tables for the run's services and the default number of flows.

    Compile (cached), load, attach, list and program are all in its load time.
    """

    def __init__(self, name: str, socket_lb: str = "off", fast_path: str = "off") -> None:
        super().__init__(name)
        self._socket_lb = socket_lb
        self._fast_path = fast_path

    def unavailable(self) -> str:
        return ""

    def _command(self, testbed: Testbed, data: Dataset, url: str) -> Sequence[str]:
        testbed.pin_dir(self.name).mkdir(parents=True, exist_ok=True)
        services = max(_LEAST_SERVICES, int(data.services * _SPARE))
        endpoints = max(_LEAST_ENDPOINTS, int(data.services * data.endpoints * _SPARE))
        return agents.lbctl_command(
            "agent",
            *("--api-server", url),
            *("--node-name", NODE),
            *("--pin-dir", str(testbed.pin_dir(self.name))),
            *("--cgroup", str(testbed.pods_cgroup(self.name))),
            *("--socket-lb", self._socket_lb),
            *("--fast-path", self._fast_path),
            *("--pod-interface", POD_INTERFACE),
            *("--uplink", UPLINK),
            *("--service-cidr", SERVICE_CIDR),
            *("--cluster-cidr", CLIENT_CIDR),
            *("--services", str(services)),
            *("--endpoints", str(endpoints)),
        )

    def _ready(self, testbed: Testbed, data: Dataset) -> bool:
        said = status.read(testbed.pin_dir(self.name))
        if not said or not said.ready or said.services != data.services:
            return False
        if said.socket_lb not in ("", self._socket_lb):
            raise LbError(f"the agent's socket programs are {said.socket_lb!r}")
        return said.fast_path.open == said.fast_path.wanted

    def kernel_memory(self) -> int | None:
        """All maps, as the kernel counts them."""
        assert self._running is not None
        with open_instance(self._running[0].pin_dir(self.name)) as instance:
            return sum(instance.map(name).memory_bytes for name in instance.map_names())
