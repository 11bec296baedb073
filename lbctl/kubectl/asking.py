"""Calls kubectl: which agents there are, and what a command says in one's pod."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

_LAST_CODE = 5  # of docs/cli.md, that of an interruption aside


class UsedWrongly(Exception):
    """What is asked for cannot be."""


class Target(NamedTuple):
    """An agent's pod."""

    node: str
    pod: str


class Result(NamedTuple):
    """What it said."""

    node: str
    code: int
    out: str
    err: str


class Asker:
    """By the flags of the plugin."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._kubectl = [os.environ.get("KUBECTL", "kubectl")]
        for flag in ("context", "kubeconfig"):
            if value := getattr(options, flag):
                self._kubectl += [f"--{flag}", value]

    def targets(self) -> list[Target]:
        """The agents that are meant, by node. Raises RuntimeError."""
        options = self._options
        pods = self._json(
            *("get", "pods", "--namespace", options.agent_namespace),
            *("--selector", options.selector, "--output", "json"),
        )
        wanted = {*options.node}
        if options.pod:
            wanted.add(self.pod(options.pod, options.namespace)[0])
        found = sorted(
            Target(pod["spec"].get("nodeName", ""), pod["metadata"]["name"])
            for pod in pods["items"]
            if pod.get("status", {}).get("phase") == "Running"
        )
        chosen = [target for target in found if not wanted or target.node in wanted]
        if missing := wanted - {target.node for target in chosen}:
            there = ", ".join(target.node for target in found) or "none"
            raise RuntimeError(
                f"no agent runs on {', '.join(sorted(missing))}. Nodes with agents: {there}"
            )
        if not chosen:
            where = f"namespace {options.agent_namespace} with {options.selector}"
            raise RuntimeError(f"no agent's pod runs in {where}: see --agent-namespace, --selector")
        return chosen

    def command(self, target: Target, words: Sequence[str], *flags: str) -> list[str]:
        """What runs lbctl in a pod; `flags` are those of `kubectl exec`."""
        where = ["--namespace", self._options.agent_namespace, target.pod, "--container", "agent"]
        return [*self._kubectl, "exec", *flags, *where, "--", "lbctl", *words]

    def ask(self, target: Target, command: Sequence[str]) -> Result:
        """Run the command in a pod."""
        seconds = self._options.request_timeout
        argv = self.command(target, command)
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return Result(target.node, 1, "", f"no answer in {seconds:g} s (--request-timeout)")
        except OSError as error:
            return Result(target.node, 1, "", f"{argv[0]}: {error.strerror}")
        return Result(target.node, done.returncode, done.stdout, _own_words(done))

    def pod(self, name: str, namespace: str) -> tuple[str, str]:
        """Node and address of a pod. Raises RuntimeError."""
        if "/" in name:
            namespace, _, name = name.partition("/")
        where = ["--namespace", namespace] if namespace else []
        found = self._json("get", "pod", name, *where, "--output", "json")
        node = found.get("spec", {}).get("nodeName", "")
        if not node:
            raise RuntimeError(f"pod {name} runs on no node yet")
        return str(node), str(found.get("status", {}).get("podIP", ""))

    def read(self, *arguments: str) -> str:
        """What kubectl prints. Raises RuntimeError with what it says instead."""
        try:
            done = subprocess.run(
                [*self._kubectl, *arguments],
                capture_output=True,
                text=True,
                timeout=self._options.request_timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"kubectl {arguments[0]} does not answer") from error
        except OSError as error:
            raise RuntimeError(f"{self._kubectl[0]}: {error.strerror}") from error
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"kubectl returned {done.returncode}")
        return done.stdout

    def _json(self, *arguments: str) -> Any:
        return json.loads(self.read(*arguments))


def _own_words(done: subprocess.CompletedProcess[str]) -> str:
    """Without kubectl's remark that a command returned what is one of lbctl's own codes: lbctl has
    said why."""
    remark = f"command terminated with exit code {done.returncode}\n"
    words = done.stderr.removesuffix(remark)
    return words if done.returncode <= _LAST_CODE and (words or done.stdout) else done.stderr
