"""`kubectl lbctl`: a reading command of lbctl, run by the agents' pods, merged by node."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from lbctl.kubectl import commands, merging, streams
from lbctl.kubectl.asking import Asker, Result, Target, UsedWrongly
from lbctl.kubectl.podnames import PODS, PodNames

USAGE = """kubectl lbctl [FLAGS] COMMAND …

Run a read-only command of lbctl in the pods of all agents, or of some. JSON and YAML are merged,
with the nodes' names as keys; tables get a column NODE; other text has a heading for each node.

Commands (see `kubectl lbctl COMMAND --help`):
  status, service list|show, backend list, flow list, trace, explain, drain --simulate, verify,
  doctor, top --once
  observe                     one stream of all nodes, sorted by time, each line with its node;
                              Ctrl-C ends it. After the command, --node is its own filter
  top                         one node, in this terminal

Which agents:
      --node NODE             only this node's; repeatable
      --for POD               only that of the node on which this pod runs (its namespace: -n)
      --agent-namespace NS    namespace of the agents' pods (default lbctl-system)
  -l, --selector LABELS       labels of the agents' pods (default app.kubernetes.io/name=lbctl)

Which services:
  -n, --namespace NS          namespace of names that are given without one
  -A, --all-namespaces        such names match in any namespace (the default)

  -o, --output FORMAT         table, wide, json or yaml; for observe: compact, table or json
      --resolve               show names of all pods, with your permissions to list pods (the agents
                              have none)
      --context, --kubeconfig as in kubectl
      --request-timeout SEC   timeout for each node (default 60)

Exits with the largest code of all nodes, or with 1 if a node could not be asked.

Examples:
  kubectl lbctl status
  kubectl lbctl service show web -n default --node worker-1
  kubectl lbctl explain web -n default --from apps/client-7d5f
  kubectl lbctl observe --service default/web --verdict dropped --resolve
  kubectl lbctl top --node worker-1
  kubectl lbctl verify -o json
"""
USED_WRONGLY = 2
INTERRUPTED, BROKEN_PIPE = 130, 141  # as shells say it
AT_ONCE = 8  # nodes that are asked
_ORIGINS = ("pod", "node", "outside")


def main() -> NoReturn:
    """Entry point of `kubectl-lbctl`."""
    try:
        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # as of `| head`; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)


def run(arguments: Sequence[str]) -> int:
    """What the process returns."""
    options, rest = _parsed(arguments)
    if not rest or rest in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0 if rest else USED_WRONGLY
    helping = bool({"-h", "--help"} & {*rest})
    if problem := "" if helping else commands.problem(rest):
        print(f"error: {problem}", file=sys.stderr)
        return USED_WRONGLY
    try:
        return _run(options, rest, helping)
    except UsedWrongly as error:
        print(f"error: {error}", file=sys.stderr)
        return USED_WRONGLY
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The plugin's own flags, wherever they stand, and the command. Behind `observe`, --node is
    that of observe."""
    options, rest = _parser().parse_known_args([*arguments])
    if rest[:1] != [*commands.OBSERVE]:
        return options, rest
    at = arguments.index(rest[0])
    before, _ = _parser().parse_known_args([*arguments[:at]])
    return _parser(nodes=False).parse_known_args([*arguments[at:]], before)


def _parser(*, nodes: bool = True) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=USAGE)
    if nodes:
        parser.add_argument("--node", action="append", default=[])
    parser.add_argument("--for", dest="pod", default="")
    parser.add_argument("--agent-namespace", default="lbctl-system")
    parser.add_argument("-l", "--selector", default="app.kubernetes.io/name=lbctl")
    parser.add_argument("-n", "--namespace", default="")
    parser.add_argument("-A", "--all-namespaces", action="store_true")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--context", default="")
    parser.add_argument("--kubeconfig", default="")
    parser.add_argument("--request-timeout", type=float, default=60.0)
    return parser


def _run(options: argparse.Namespace, rest: Sequence[str], helping: bool) -> int:
    """Raises RuntimeError, UsedWrongly."""
    asker = Asker(options)
    if options.resolve and commands.value_of(rest, "-o", "--output") == "yaml":
        raise UsedWrongly("--resolve is for text and -o json")
    command = commands.with_namespace(rest, options.namespace)
    if not helping and commands.known(command) == ("explain",):
        command = _explained_from(asker, options, command)
    targets = asker.targets()
    if helping:  # the same on all of them
        return _ask(asker, targets[:1], command, None)
    if commands.is_screen(command):
        _show_screen(asker, targets, command)
    names = _pod_names(asker) if options.resolve else None
    if commands.known(command) == commands.OBSERVE:
        streamed = [*command, "--end-with-stdin"]
        processes = {t.node: asker.command(t, streamed, "--stdin") for t in targets}
        return streams.follow(processes, command, names)
    return _ask(asker, targets, command, names)


def _pod_names(asker: Asker) -> PodNames:
    names = PodNames(lambda: asker.read(*PODS))
    try:
        names.load()
    except RuntimeError as error:
        raise RuntimeError(f"--resolve: pods cannot be listed: {error}") from error
    return names


def _explained_from(asker: Asker, options: argparse.Namespace, command: Sequence[str]) -> list[str]:
    """`--from NAMESPACE/POD` is the pod's address, asked on the pod's node unless one is named:
    agents know no pod but endpoints."""
    source = commands.value_of(command, "--from")
    if "/" not in source or source in _ORIGINS or _is_network(source):
        return [*command]
    node, address = asker.pod(source, options.namespace)
    if not address:
        raise RuntimeError(f"pod {source} has no address yet")
    if not options.node and not options.pod:
        options.node = [node]
    return commands.replaced(command, "--from", address)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _show_screen(asker: Asker, targets: Sequence[Target], command: Sequence[str]) -> NoReturn:
    """Give the terminal to the pod; this process is then kubectl's. Raises RuntimeError,
    UsedWrongly."""
    if len(targets) > 1:
        listed = ", ".join(target.node for target in targets)
        raise UsedWrongly(
            f"top shows one node: --node or --for says which, --once asks all. There are: {listed}"
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsedWrongly("top needs a terminal. Without one: --once, and -o json.")
    argv = asker.command(targets[0], command, "--stdin", "--tty")
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise RuntimeError(f"{argv[0]}: {error.strerror}") from error


def _ask(
    asker: Asker, targets: Sequence[Target], command: Sequence[str], names: PodNames | None
) -> int:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = [*pool.map(lambda target: asker.ask(target, command), targets)]
    _print(results, command, names)
    return max(result.code for result in results)


def _print(results: Sequence[Result], command: Sequence[str], names: PodNames | None) -> None:
    if {(result.code, result.err) for result in results} == {(USED_WRONGLY, results[0].err)}:
        print(results[0].err, end="", file=sys.stderr)  # it is about no node
        return
    for result in results:
        for line in result.err.splitlines():
            print(f"{result.node}: {line}", file=sys.stderr)
    said = [result for result in results if result.out.strip()]
    output = commands.value_of(command, "-o", "--output")
    if output == "json":
        merged = _merged(said)
        shown = names.in_data(merged) if names else merged
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    if output == "yaml":
        for result in said:
            print(f"{json.dumps(result.node)}:")
            print("".join(f"  {line}\n" for line in result.out.splitlines()), end="")
        return
    parts = [(result.node, result.out.rstrip().splitlines()) for result in said]
    if commands.known(command) in commands.TABLES and parts:
        name = names.in_text if names else str
        print("\n".join(merging.merged_table(parts, name)))
    elif parts:
        blocks = ("\n".join([f"== {node} ==", *_named(lines, names)]) for node, lines in parts)
        print("\n\n".join(blocks))


def _named(lines: Sequence[str], names: PodNames | None) -> list[str]:
    return [names.in_text(line) for line in lines] if names else [*lines]


def _merged(results: Sequence[Result]) -> dict[str, Any]:
    found = {}
    for result in results:
        try:
            found[result.node] = json.loads(result.out)
        except ValueError:
            print(f"{result.node}: what it said is no JSON", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
