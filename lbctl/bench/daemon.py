"""A peer that is a process: it lists and watches an API server of the harness's, as on a node."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from lbctl.bench.apiserver import ApiServer
from lbctl.bench.dataset import Dataset
from lbctl.bench.peers import NotFinished
from lbctl.bench.testbed import Testbed
from lbctl.errors import LbError
from lbctl.lab import agents, namespace

NODE = "node"
LOG_LINES = 2
LOG_LENGTH = 600
END_TIMEOUT = 10.0


class Daemon(ABC):
    """Starting, listing and programming are all in its load time."""

    saved = False
    runs_agent = True
    poll = 0.005  # seconds between looks at whether it is ready

    def __init__(self, name: str) -> None:
        self.name = name
        self._running: tuple[Testbed, Dataset, ApiServer] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self, testbed: Testbed, data: Dataset, url: str) -> Sequence[str]:
        """The command line to run on the node, for an API server at `url`."""

    @abstractmethod
    def _ready(self, testbed: Testbed, data: Dataset) -> bool:
        """Whether everything is programmed."""

    def load(self, testbed: Testbed, data: Dataset, timeout: float) -> float | None:
        site = testbed.sites[self.name]
        api = namespace.run_in(site.node, ApiServer)
        for item in data.all_objects(NODE, site.node_address):
            api.put(item)
        api.settle()
        api.__enter__()
        self._running = (testbed, data, api)
        command = testbed.command(self.name, self._command(testbed, data, api.url))
        start = time.monotonic()
        with self._log(testbed).open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=agents.environment(),
                cwd="/",
                start_new_session=True,  # a Ctrl-C is for the harness, which ends it
            )
        while not self._ready(testbed, data):
            if self._process.poll() is not None:
                raise LbError(f"the agent ended: {self._log_end(testbed)}")
            if time.monotonic() > start + timeout:
                raise NotFinished(
                    f"not finished in {timeout:g} s; its log ends: {self._log_end(testbed)}"
                )
            time.sleep(self.poll)
        return time.monotonic() - start

    def change(self, old: Sequence[str], new: Sequence[str]) -> None:
        assert self._running is not None
        _, data, api = self._running
        api.put(data.changed_slice(new))

    def agent_memory(self) -> int | None:
        """Resident memory of the process, the pages of shared libraries included."""
        if self._process is None:
            return None
        for line in Path("/proc", str(self._process.pid), "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return None

    def stop(self) -> None:
        if self._process is not None:
            # With the tools it runs: one that went on loading would take the others' CPU.
            self._signal(self._process, signal.SIGTERM)
            try:
                self._process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._signal(self._process, signal.SIGKILL)
                self._process.wait(END_TIMEOUT)
            self._process = None
        if self._running is not None:
            self._running[2].__exit__()
            self._running = None

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """To the process and its children, unless it has ended."""
        if process.poll() is None:
            os.killpg(process.pid, number)  # it leads a session of its own

    def _log(self, testbed: Testbed) -> Path:
        return testbed.directory(self.name) / "agent.log"

    def _log_end(self, testbed: Testbed) -> str:
        lines = self._log(testbed).read_text(errors="replace").splitlines()
        return " / ".join(lines[-LOG_LINES:])[:LOG_LENGTH]
