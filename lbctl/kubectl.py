#!/usr/bin/env python3
"""`kubectl lbctl`: a reading command of lbctl, run by the agents' pods, its results merged by node.

A file for itself: it imports nothing but the standard library, so that a copy called kubectl-lbctl
anywhere on the PATH is a whole plugin, wherever kubectl is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

USAGE = """kubectl lbctl [FLAGS] COMMAND …

Run a reading command of lbctl in the pod of a node's agent, or of all nodes' agents. JSON and YAML
come merged under the nodes' names, tables with a column NODE, text under a heading.

Commands (see `kubectl lbctl COMMAND --help`):
  status, service list|show, backend list, flow list, trace, explain, drain --simulate, verify,
  doctor, top --once

Which agents:
      --node NODE             that of this node alone; repeatable
      --for POD               that of the node on which this pod runs (its namespace: -n)
      --agent-namespace NS    where the agents are (default lbctl-system)
  -l, --selector LABELS       which pods they are (default app.kubernetes.io/name=lbctl)

Which services:
  -n, --namespace NS          names without a namespace are of this one
  -A, --all-namespaces        names are of any namespace (the default)

  -o, --output FORMAT         table, wide, json or yaml
      --context, --kubeconfig as for kubectl
      --request-timeout SEC   for each node (default 60)

Returns the largest exit code of all nodes, 1 if one could not be asked.

Examples:
  kubectl lbctl status
  kubectl lbctl service show web -n default --node worker-1
  kubectl lbctl explain web --for client-7d5f -n default
  kubectl lbctl verify -o json
"""
USED_WRONGLY = 2
AT_ONCE = 8  # nodes that are asked
TABLES = {("service", "list"), ("backend", "list"), ("flow", "list"), ("doctor",), ("verify",)}
# Command, and what follows its name that is a service's name.
WITH_SERVICE = {("service", "show"): 2, ("backend", "list"): 2, ("explain",): 1}
READING = {*TABLES, *WITH_SERVICE, ("status",), ("trace",), ("drain",), ("top",)}
# What these commands do beside reading, or without end.
CHANGING = {"--repair": "it changes things: run it in one agent's pod by `kubectl exec`"}
NEEDED = {("drain",): "--simulate", ("top",): "--once"}
_NUMBER = re.compile(r"-|[\d.,]+ ?[A-Za-z%]{0,2}")


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


def main() -> NoReturn:
    """Entry point of `kubectl-lbctl`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """What the process returns."""
    options, rest = _parser().parse_known_args(list(arguments))
    if not rest or rest in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0 if rest else USED_WRONGLY
    helping = {"-h", "--help"} & {*rest}
    if problem := "" if helping else _problem(rest):
        print(f"error: {problem}", file=sys.stderr)
        return USED_WRONGLY
    asker = Asker(options)
    try:
        targets = asker.targets()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if helping:  # the same on all of them
        targets = targets[:1]
    command = _with_namespace(rest, options.namespace)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(lambda target: asker.ask(target, command), targets))
    _print(results, rest)
    return max(result.code for result in results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=USAGE)
    parser.add_argument("--node", action="append", default=[])
    parser.add_argument("--for", dest="pod", default="")
    parser.add_argument("--agent-namespace", default="lbctl-system")
    parser.add_argument("-l", "--selector", default="app.kubernetes.io/name=lbctl")
    parser.add_argument("-n", "--namespace", default="")
    parser.add_argument("-A", "--all-namespaces", action="store_true")
    parser.add_argument("--context", default="")
    parser.add_argument("--kubeconfig", default="")
    parser.add_argument("--request-timeout", type=float, default=60.0)
    return parser


def _problem(command: Sequence[str]) -> str:
    """Why it is not run; empty if it is."""
    known = _known(command)
    if known is None:
        listed = ", ".join(sorted(" ".join(words) for words in READING))
        return f"{' '.join(command[:2])!r} is no reading command. There are: {listed}"
    for word, why in CHANGING.items():
        if word in command:
            return f"{word} is refused here: {why}"
    if known in NEEDED and NEEDED[known] not in command:
        return f"{' '.join(known)} is run with {NEEDED[known]} alone here"
    return ""


def _known(command: Sequence[str]) -> tuple[str, ...] | None:
    for length in (2, 1):
        if tuple(command[:length]) in READING:
            return tuple(command[:length])
    return None


def _with_namespace(command: Sequence[str], namespace: str) -> list[str]:
    """The command with the namespace in the names of services, where it has none."""
    words, known = list(command), _known(command)
    if not namespace or known is None:
        return words
    if known == ("service", "list"):
        return [*words, "--namespace", namespace]
    place = WITH_SERVICE.get(known)
    if place is not None and place < len(words) and not words[place].startswith("-"):
        words[place] = _qualified(words[place], namespace)
    if "--service" in words[:-1]:
        at = words.index("--service") + 1
        words[at] = _qualified(words[at], namespace)
    return words


def _qualified(name: str, namespace: str) -> str:
    return name if "/" in name else f"{namespace}/{name}"


class Asker:
    """Calls kubectl."""

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
            wanted.add(self._node_of(options.pod, options.namespace))
        found = sorted(
            Target(pod["spec"].get("nodeName", ""), pod["metadata"]["name"])
            for pod in pods["items"]
            if pod.get("status", {}).get("phase") == "Running"
        )
        chosen = [target for target in found if not wanted or target.node in wanted]
        if missing := wanted - {target.node for target in chosen}:
            raise RuntimeError(f"no agent runs on {', '.join(sorted(missing))}")
        if not chosen:
            where = f"namespace {options.agent_namespace} with {options.selector}"
            raise RuntimeError(f"no agent's pod runs in {where}: see --agent-namespace, --selector")
        return chosen

    def ask(self, target: Target, command: Sequence[str]) -> Result:
        """Run the command in a pod."""
        where = ["--namespace", self._options.agent_namespace, target.pod, "--container", "agent"]
        seconds = self._options.request_timeout
        argv = [*self._kubectl, "exec", *where, "--", "lbctl", *command]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return Result(target.node, 1, "", f"no answer in {seconds:g} s")
        except OSError as error:
            return Result(target.node, 1, "", f"{argv[0]}: {error.strerror}")
        return Result(target.node, done.returncode, done.stdout, done.stderr)

    def _node_of(self, pod: str, namespace: str) -> str:
        where = ["--namespace", namespace] if namespace else []
        found = self._json("get", "pod", pod, *where, "--output", "json")
        node = found["spec"].get("nodeName", "")
        if not node:
            raise RuntimeError(f"pod {pod} runs on no node yet")
        return str(node)

    def _json(self, *arguments: str) -> Any:
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
        return json.loads(done.stdout)


def _print(results: Sequence[Result], command: Sequence[str]) -> None:
    for result in results:
        for line in result.err.splitlines():
            print(f"{result.node}: {line}", file=sys.stderr)
    said = [result for result in results if result.out.strip()]
    output = _output(command)
    if output == "json":
        print(json.dumps(_merged(said), indent=2, ensure_ascii=False))
    elif output == "yaml":
        for result in said:
            print(f"{json.dumps(result.node)}:")
            print("".join(f"  {line}\n" for line in result.out.splitlines()), end="")
    elif _known(command) in TABLES and said:
        print("\n".join(merged_table([(r.node, r.out.splitlines()) for r in said])))
    else:
        blocks = (f"== {result.node} ==\n{result.out.rstrip()}" for result in said)
        print("\n\n".join(blocks))


def _merged(results: Sequence[Result]) -> dict[str, Any]:
    found = {}
    for result in results:
        try:
            found[result.node] = json.loads(result.out)
        except ValueError:
            print(f"{result.node}: what it said is no JSON", file=sys.stderr)
    return found


def _output(command: Sequence[str]) -> str:
    for place, word in enumerate(command):
        if word in ("-o", "--output") and place + 1 < len(command):
            return command[place + 1]
        for start in ("--output=", "-o="):
            if word.startswith(start):
                return word.removeprefix(start)
        if re.fullmatch(r"-o[a-z]+", word):
            return word[2:]
    return "table"


def merged_table(parts: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Tables with the same columns as one, the node in front. A table of another shape (another
    version of lbctl) comes after them, as it is."""
    rows: list[list[str]] = []
    others: list[str] = []
    for node, lines in parts:
        head, *body = columns_of(lines)
        if not rows:
            rows.append(["NODE", *head])
        if ["NODE", *head] == rows[0]:
            rows += [[node, *cells] for cells in body]
        else:
            others += [f"== {node} ==", *lines]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    numbers = [
        len(rows) > 1 and all(_NUMBER.fullmatch(row[place]) for row in rows[1:] if row[place])
        for place in range(len(widths))
    ]
    aligned = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [*aligned, *others]


def columns_of(lines: Sequence[str]) -> list[list[str]]:
    """The cells of an aligned table: columns stand apart by two places that are blank in all lines,
    and each has a title."""
    width = max(map(len, lines))
    padded = [line.ljust(width) for line in lines]
    blank = [all(line[place] == " " for line in padded) for place in range(width)]
    spans: list[tuple[int, int]] = []
    for start, end in _spans(blank):
        if spans and not padded[0][start:end].strip():
            start = spans.pop()[0]
        spans.append((start, end))
    return [[line[start:end].strip() for start, end in spans] for line in padded]


def _spans(blank: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Start and end of each run without two blanks in a row."""
    start = 0
    for place in range(1, len(blank)):
        if blank[place] and blank[place - 1]:
            if place - 1 > start:
                yield start, place - 1
            start = place + 1
    if start < len(blank):
        yield start, len(blank)


if __name__ == "__main__":
    main()
