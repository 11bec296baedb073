"""A kubectl for a lab: its agents' pods are the nodes, in which it runs what it is to exec."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from lbctl.lab.agents import environment, lbctl_command
from lbctl.lab.cluster import Lab

_SCRIPT = """#!{python}
import json, os, sys
known = json.load(open({known!r}))
words = sys.argv[1:]
if words[0] == "exec":
    pod = words[words.index("--namespace") + 2]
    node = known["nodes"][pod]
    with open(os.path.join({directory!r}, pod), "w") as file:
        file.write(str(os.getpid()))
    os.environ.update(known["environment"], LBCTL_PIN_DIR=node["pin_dir"])
    argv = node["command"] + words[words.index("--") + 2 :]
    os.execvp(argv[0], argv)
elif words[:2] == ["get", "pod"]:
    print(json.dumps(known["pods"][words[2]]))
elif "--all-namespaces" in words:
    print(known["listed"], end="")
else:
    items = [
        {{
            "metadata": {{"name": pod}},
            "spec": {{"nodeName": node["node"]}},
            "status": {{"phase": "Running"}},
        }}
        for pod, node in known["nodes"].items()
    ]
    print(json.dumps({{"items": items}}))
"""


class LabKubectl:
    """Whoever has `environment` calls it as kubectl."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._directory = directory
        known = {
            "environment": {"PYTHONPATH": environment()["PYTHONPATH"]},
            "listed": "".join(
                f"Running\t\tdefault/{pod.name}\t{' '.join(pod.addresses)}\n" for pod in lab.pods
            ),
            "pods": {
                pod.name: {"spec": {"nodeName": pod.node}, "status": {"podIP": pod.addresses[0]}}
                for pod in lab.pods
            },
            "nodes": {
                f"agent-{node.name}": {
                    "node": node.name,
                    "pin_dir": str(lab.pin_dir(node.name)),
                    "command": lab.command(node.name, lbctl_command()),
                }
                for node in lab.nodes
            },
        }
        (directory / "known.json").write_text(json.dumps(known))
        script = directory / "kubectl"
        script.write_text(
            _SCRIPT.format(
                python=sys.executable, known=str(directory / "known.json"), directory=str(directory)
            )
        )
        script.chmod(0o755)
        self.environment = environment() | {"KUBECTL": str(script)}

    @property
    def command(self) -> list[str]:
        """The plugin, to which words are added."""
        return [sys.executable, "-m", "lbctl.kubectl.run"]

    def kill(self, node: str, number: int) -> None:
        """The connection to a node's agent breaks."""
        os.kill(int((self._directory / f"agent-{node}").read_text()), number)
