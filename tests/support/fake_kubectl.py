"""A kubectl that only pretends: it runs no pod, but says what a test tells it to."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from lbctl.kubectl import run as kubectl

FAKE = """#!{python}
import json, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(words) + "\\n")
answers = json.load(open({answers!r}))
while words and words[0].startswith("--"):
    words = words[2:]
if words[:3] == ["get", "pods", "--all-namespaces"]:
    if answers["listed"] is None:
        print("Error from server (Forbidden)", file=sys.stderr)
        sys.exit(1)
    print(answers["listed"], end="")
elif words[:2] == ["get", "pods"]:
    print(json.dumps(answers["pods"]))
elif words[:2] == ["get", "pod"]:
    if words[2] not in answers["node_of"]:
        print("Error from server (NotFound)", file=sys.stderr)
        sys.exit(1)
    spec, status = {{"nodeName": answers["node_of"][words[2]]}}, {{"podIP": "10.1.0.9"}}
    print(json.dumps({{"spec": spec, "status": status}}))
elif words[0] == "exec":
    said = answers["said"][words[words.index("--namespace") + 2]]
    print(said["out"], end="", flush=True)
    if said.get("waits"):
        sys.stdin.readline()
        print(said["waits"], end="")
    print(said.get("err", ""), end="", file=sys.stderr)
    sys.exit(said.get("code", 0))
"""


class Cluster:
    """What the pretended kubectl knows, and what it was asked."""

    def __init__(self, directory: Path) -> None:
        self._log, self._answers = directory / "log", directory / "answers.json"
        self.said: dict[str, dict[str, Any]] = {}
        self.phases = {"agent-1": "Running", "agent-2": "Running"}
        self.node_of = {"client": "node2"}
        self.listed: str | None = None
        self.path = directory / "bin"
        self.path.mkdir()
        fake = self.path / "kubectl"
        fake.write_text(
            FAKE.format(python=sys.executable, log=str(self._log), answers=str(self._answers))
        )
        fake.chmod(0o755)

    def run(self, *words: str) -> int:
        self.answer()
        return kubectl.run(words)

    def answer(self) -> None:
        """Write down what kubectl is to say."""
        pods = [
            {
                "metadata": {"name": name},
                "spec": {"nodeName": name.replace("agent-", "node")},
                "status": {"phase": phase},
            }
            for name, phase in self.phases.items()
        ]
        answers = {
            "pods": {"items": pods},
            "node_of": self.node_of,
            "said": self.said,
            "listed": self.listed,
        }
        self._answers.write_text(json.dumps(answers))

    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def ran(self) -> list[str]:
        """The commands of lbctl, of all pods alike."""
        found = {" ".join(w[w.index("--") + 1 :]) for w in self.asked() if "exec" in w}
        return sorted(found)


def pretended(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """It is the kubectl on the PATH."""
    made = Cluster(directory)
    monkeypatch.delenv("KUBECTL", raising=False)
    monkeypatch.setenv("PATH", f"{made.path}:{os.environ['PATH']}")
    return made
