"""Debian's Prometheus inside a node's namespace: it scrapes the agent of the node, and answers
queries there. Nothing of it leaves the namespace."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import pytest
import yaml

from lbctl.lab.cluster import Lab
from tests.lab.support.labs import inside
from tests.support import monitoring

_UNPACKED = Path(__file__).parents[3] / ".venv" / "prometheus" / "usr" / "bin"
PORT = 9090
METRICS = 10249
SCRAPE_SECONDS = 1
_STARTS = 60.0


def program(name: str) -> str:
    """A path, or the test is skipped: in CI that is a failure."""
    found = shutil.which(name, path=str(_UNPACKED)) or shutil.which(name)
    if not found:
        pytest.skip(f"no {name} here: `./dev test` fetches it")
    return found


def get(lab: Lab, node: str, port: int, path: str) -> tuple[int, bytes]:
    """Status and body, asked for on the node's loopback."""

    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=10)

    client = http.client.HTTPConnection("127.0.0.1", port)
    client.sock = inside(lab, node, connect)
    try:
        client.request("GET", path)
        answer = client.getresponse()
        return answer.status, answer.read()
    finally:
        client.close()


class Prometheus:
    """A context manager."""

    def __init__(self, lab: Lab, node: str, directory: Path) -> None:
        self._lab = lab
        self._node = node
        self._directory = directory
        self._log = directory / "prometheus.log"
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        target = {"targets": [f"127.0.0.1:{METRICS}"], "labels": {"instance": self._node}}
        config = {
            "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "1s"},
            "rule_files": [str(monitoring.RULES)],
            "scrape_configs": [{"job_name": "kube-proxy", "static_configs": [target]}],
        }
        place = self._directory / "prometheus.yaml"
        place.write_text(yaml.safe_dump(config))
        command = [
            program("prometheus"),
            f"--config.file={place}",
            f"--storage.tsdb.path={self._directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{PORT}",
            "--log.level=warn",
        ]
        with self._log.open("w") as log:
            self._process = self._lab.popen(self._node, command, stdout=log, stderr=log)
        self.until(lambda: bool(self.query("up == 1")), _STARTS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(20)

    def query(self, text: str) -> list[dict[str, Any]]:
        """The series of an instant query, as the API has them."""
        return self._ask("query", query=text)["result"]  # type: ignore[no-any-return]

    def ranged(self, text: str, seconds: float) -> list[dict[str, Any]]:
        """The series of these last seconds, one value for each."""
        now = time.time()
        asked = {"query": text, "start": f"{now - seconds}", "end": f"{now}", "step": "1"}
        return self._ask("query_range", **asked)["result"]  # type: ignore[no-any-return]

    def alerts(self) -> Mapping[str, str]:
        """Names of alerts that hold, with their state."""
        found = self._ask("alerts")["alerts"]
        return {item["labels"]["alertname"]: item["state"] for item in found}

    def health_of_rules(self) -> dict[str, str]:
        """By name: what the last evaluation said, ok or an error; unknown before the first."""
        groups = self._ask("rules")["groups"]
        return {r["name"]: r.get("lastError") or r["health"] for g in groups for r in g["rules"]}

    def until(self, what: Callable[[], bool], seconds: float) -> None:
        """Within this time."""
        limit = time.monotonic() + seconds
        while True:
            assert self._process
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            try:
                if what():
                    return
            except (OSError, http.client.HTTPException):
                pass
            assert time.monotonic() < limit, self._log.read_text()[-3000:]
            time.sleep(0.2)

    def _ask(self, what: str, **query: str) -> dict[str, Any]:
        status, body = get(self._lab, self._node, PORT, f"/api/v1/{what}?{urlencode(query)}")
        if status == 503:
            raise http.client.HTTPException("it is still starting")
        assert status == 200, body
        data: dict[str, Any] = json.loads(body)["data"]
        return data
