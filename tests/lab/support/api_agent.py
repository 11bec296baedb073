"""The agent of node1, which follows an API server of the test's instead of the lab's files."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lbctl import status
from lbctl.lab import agents
from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import JsonObject
from lbctl.lab.state import AgentOptions
from tests.support.hostile_api import KINDS, Answer, HostileApi, Request
from tests.support.waiting import wait_until

START = 60.0
KIND_PATHS = {kind: path for path, (_, kind) in KINDS.items()}


class ApiAgent:
    """Agents one after the other, with one instance."""

    def __init__(self, lab: Lab, api: HostileApi, directory: Path) -> None:
        self._lab = lab
        self._config = api.kubeconfig(directory)
        self.log = directory / "agent.log"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        node = self._lab.node("node1")
        arguments = agents.arguments(self._lab.paths, node, AgentOptions())
        place = arguments.index("--manifests")
        source = ["--kubeconfig", str(self._config)]
        command = lbctl_command(*arguments[:place], *source, *arguments[place + 2 :])
        with self.log.open("a") as log:
            self._process = self._lab.popen("node1", command, stdout=log, stderr=log)

    def end(self, number: int = signal.SIGKILL) -> None:
        if self._process:
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None

    def restart(self) -> None:
        self.end()
        self.start()

    def ready(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        said = status.read(self._lab.pin_dir("node1"))
        return bool(said and said.pid == self._process.pid and said.ready)

    def wait_ready(self) -> None:
        wait_until(self.ready, START, lambda: self.log.read_text()[-3000:])


class Watches:
    """Watches that stay open and say nothing, until all of them are cut."""

    def __init__(self) -> None:
        self._epoch = 0
        self._changed = threading.Condition()

    def cut(self) -> None:
        with self._changed:
            self._epoch += 1
            self._changed.notify_all()

    def hold(self, *lines: JsonObject) -> Answer:
        """A watch that says these lines first."""

        def answer(request: Request) -> None:
            request.send_response(200)
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            for line in lines:
                data = msgspec.json.encode(line) + b"\n"
                request.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self._wait(request)

        return answer

    def flood(self, piece: bytes, pause: float) -> Answer:
        """A body without end, which gets on at this pace."""

        def answer(request: Request) -> None:
            request.send_response(200)
            request.send_header("Content-Length", str(1 << 40))
            request.end_headers()
            epoch = self._epoch
            while epoch == self._epoch and not request.api.closing.is_set():
                request.wfile.write(piece)
                time.sleep(pause)
            request.close_connection = True

        return answer

    def _wait(self, request: Request) -> None:
        with self._changed:
            epoch = self._epoch
            while epoch == self._epoch and not request.api.closing.is_set():
                self._changed.wait(0.1)
        request.close_connection = True


def fill(api: HostileApi, objects: Sequence[JsonObject]) -> None:
    """Let the server have these objects, in the place of those of the same names."""
    for item in objects:
        path = KIND_PATHS[item["kind"]]
        name = item["metadata"]["name"]
        others = [known for known in api.items[path] if known["metadata"]["name"] != name]
        api.items[path] = [*others, item]
