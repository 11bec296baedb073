"""A running lab as an object: build it, run programs in it, change its services, remove it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ebpf.kernel import bpffs
from lbctl.errors import LbError, UsageError
from lbctl.lab import (
    agents,
    cgroup,
    namespace,
    network,
    objects,
    process,
    state,
    teardown,
    topology,
)
from lbctl.lab.process import ProcessId
from lbctl.lab.state import AgentOptions, Paths, State
from lbctl.lab.topology import Cni, Node, Outside, Pod
from lbctl.sources.documents import manifest_files

START_TIMEOUT = 120.0  # a first start compiles the programs
EXEC_TIMEOUT = 30.0  # seconds a program of `Lab.exec` may take unless told otherwise
NODES_MANIFEST = "nodes"


class Lab:
    """Handle of an existing lab. `Lab.up` builds one, `Lab.load` finds one by its name.

    As a context manager, the lab is removed at the end of the block, however it ends.
    """

    def __init__(self, known: State) -> None:
        self._state = known
        self.paths = Paths(known.topology.name)
        # Started by this very process, by process id: theirs are the exit codes we must collect.
        self._children: dict[int, subprocess.Popen[Any]] = {}

    # Life

    @classmethod
    def up(
        cls,
        name: str = "lab",
        *,
        nodes: int = 2,
        pods: int = 3,
        cni: Cni = "route",
        agent: bool = True,
        manifests: Path | None = None,
        options: AgentOptions | None = None,
        wait: float = START_TIMEOUT,
    ) -> Lab:
        """Build the lab `name`: `nodes` nodes with `pods` pods on each, and an outside client.

        `manifests` is a file or directory whose objects are copied into the lab. Without `agent`
        nothing serves the nodes; else this waits up to `wait` seconds until the agents are ready
        (0: not at all). If a part fails, what was made is removed again. LbError if
        a lab of that name exists.
        """
        plan = topology.plan(name, nodes, pods, cni)
        _check_free(plan)
        lab = cls(
            State(
                topology=plan,
                builder=ProcessId.of(os.getpid()),
                options=(options or AgentOptions()) if agent else None,
            )
        )
        lab._claim()
        try:
            lab._build(manifests)
            if agent and wait:
                lab.wait_ready(timeout=wait)
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def load(cls, name: str = "lab") -> Lab:
        """The lab `name`; LbError if there is none."""
        return cls(state.load(name))

    def down(self) -> None:
        """Remove every trace of the lab; no error if it is gone already."""
        teardown.remove(self.name)
        for child in self._children.values():
            child.wait(timeout=10)
        self._children.clear()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def _claim(self) -> None:
        """Take the name. Nothing else has been made before, so nobody else's lab is in danger."""
        try:
            self.paths.run.mkdir(parents=True)
        except FileExistsError:
            raise _exists(self.name) from None

    def _build(self, manifests: Path | None) -> None:
        state.save(self.paths, self._state)
        self._make_directories()
        if manifests is not None:
            self._copy_manifests(manifests)
        self.apply(NODES_MANIFEST, objects.nodes(self._state.topology))
        network.build(self._state.topology)
        if self._state.options is not None:
            for node in self.nodes:
                self._start_agent(node)
        self._save(phase="up")

    def _make_directories(self) -> None:
        self.paths.manifests.mkdir()
        bpffs.mount()
        for node in self.nodes:
            self.paths.pin_dir(node.name).mkdir(parents=True)
        for member in self._state.topology.members:
            self.paths.cgroup(member).mkdir(parents=True)

    def _copy_manifests(self, source: Path) -> None:
        for file in manifest_files(source):
            shutil.copy(file, self.paths.manifests)

    def _save(self, **changes: Any) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)
        state.save(self.paths, self._state)

    # What there is

    @property
    def name(self) -> str:
        return self._state.topology.name

    @property
    def state(self) -> State:
        return self._state

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self._state.topology.nodes

    @property
    def pods(self) -> tuple[Pod, ...]:
        return self._state.topology.pods

    @property
    def outside(self) -> Outside:
        return self._state.topology.outside

    def find(self, member: str) -> Node | Pod | Outside:
        """The node, pod or outside client of that name; LbError names those there are."""
        return self._state.topology.find(member)

    def node(self, name: str) -> Node:
        found = self.find(name)
        if not isinstance(found, Node):
            raise UsageError(f"{name!r} is not a node of lab {self.name!r}")
        return found

    def pin_dir(self, node: str) -> Path:
        return self.paths.pin_dir(self.node(node).name)

    # Pods that come and go

    def add_pod(self, node: str) -> Pod:
        """Make one more pod on a node, as a kubelet would; it has its addresses at return."""
        found = self.node(node)
        grown, pod = topology.with_pod(self._state.topology, found)
        self._save(topology=grown)
        self.paths.cgroup(pod).mkdir()
        network.build_pod(grown, found, pod)
        return pod

    def remove_pod(self, name: str) -> None:
        """End a pod's processes and delete its namespace, and with it its link and addresses."""
        pod = self.find(name)
        if not isinstance(pod, Pod):
            raise UsageError(f"{name!r} is not a pod of lab {self.name!r}")
        cgroup.remove(self.paths.cgroup(pod))
        network.remove_pod(self.node(pod.node), pod)
        self._save(topology=topology.without_pod(self._state.topology, pod))

    # Programs

    def command(self, member: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in a member's namespace and cgroup."""
        found = self.find(member)
        return process.command_in(found.namespace, self.paths.cgroup(found), argv)

    def exec(
        self,
        member: str,
        argv: Sequence[str],
        *,
        timeout: float = EXEC_TIMEOUT,
        check: bool = False,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end and return its output.

        With `check`, LbError if it fails. subprocess.TimeoutExpired after `timeout` seconds.
        """
        done = subprocess.run(
            self.command(member, argv),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=agents.environment(),
            check=False,
        )
        if check and done.returncode != 0:
            raise LbError(f"{member}: {' '.join(argv)}: exit {done.returncode}: {done.stderr}")
        return done

    def popen(self, member: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a program and return at once; `options` are those of subprocess.Popen (text)."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "env": agents.environment()}
        return subprocess.Popen(self.command(member, argv), text=True, **(given | options))

    def serve(self, programs: Mapping[str, Sequence[str]], timeout: float = 10.0) -> None:
        """Start a server in each member and wait for a line from each; all end with the lab.

        `programs` maps members to command lines. LbError if one says nothing for `timeout`
        seconds; what they say on standard error goes to MEMBER.log in the lab's directory.
        """
        started: dict[str, subprocess.Popen[str]] = {}
        for member, argv in programs.items():
            with self.paths.log(member).open("ab") as log:
                child = self.popen(member, argv, stdout=subprocess.PIPE, stderr=log)
            self._children[child.pid] = started[member] = child
        silent = [member for member, child in started.items() if not _spoke(child, timeout)]
        if silent:
            raise LbError(
                f"{silent[0]}: {' '.join(programs[silent[0]])} does not serve",
                f"Its log: {self.paths.log(silent[0])}",
            )

    # Services

    service = staticmethod(objects.service)

    def apply(self, name: str, items: Sequence[objects.JsonObject]) -> None:
        """Write the objects to the lab's manifest file `name`, replacing it in one step.

        `name` may have a suffix, to replace a file that `up` was given.
        """
        state.write_atomically(self._manifest(name), objects.as_list(items))

    def withdraw(self, name: str) -> None:
        """Remove the manifest file `name` and with it its objects; no error if there is none."""
        self._manifest(name).unlink(missing_ok=True)

    def wait_programmed(
        self, service: str, pods: Iterable[Pod], nodes: Sequence[str] = (), timeout: float = 30.0
    ) -> None:
        """Wait until `service` leads to exactly `pods`; see `waiting.wait_programmed`."""
        from lbctl.lab import waiting  # reads maps, which a lab without agents does not have

        waiting.wait_programmed(
            self._state, self.paths, service, pods, nodes=nodes, timeout=timeout
        )

    def wait_attached(self, nodes: Sequence[str] = (), timeout: float = START_TIMEOUT) -> None:
        """Wait until programs are attached to the links of all pods."""
        from lbctl.lab import waiting  # as above

        waiting.wait_attached(self._state, self.paths, nodes, timeout)

    def wait_ready(self, nodes: Sequence[str] = (), timeout: float = START_TIMEOUT) -> None:
        """Wait until the agents last started say that they are ready."""
        from lbctl.lab import waiting  # as above

        waiting.wait_ready(self._state, self.paths, nodes, timeout)

    def wait_gone(self, service: str, nodes: Sequence[str] = (), timeout: float = 30.0) -> None:
        """Wait until `service` has no addresses left."""
        from lbctl.lab import waiting  # as above

        waiting.wait_gone(self._state, self.paths, service, nodes, timeout)

    def _manifest(self, name: str) -> Path:
        file = self.paths.manifests / name
        return file if file.suffix else file.with_suffix(".json")

    # Agents

    def agent(self, node: str) -> ProcessId | None:
        """The process last started as a node's agent; it may have ended."""
        return self._state.agents.get(self.node(node).name)

    def start_agent(self, node: str, options: AgentOptions | None = None) -> ProcessId:
        """Start the agent of a node, also in a lab that was built without. LbError if one runs."""
        found = self.node(node)
        running = self.agent(node)
        if running is not None and running.running:
            raise LbError(f"{node} has an agent already: process {running.pid}")
        if options is not None or self._state.options is None:
            self._save(options=options or AgentOptions())
        started = self._start_agent(found)
        self._save()
        return started

    def stop_agent(self, node: str, number: int = signal.SIGTERM, timeout: float = 10.0) -> None:
        """Send a signal to a node's agent and wait for its end; LbError after `timeout` seconds."""
        known = self.agent(node)
        if known is None:
            return
        if not known.kill(number, timeout):
            raise LbError(
                f"agent {known.pid} of {node} did not end {timeout:g} s after signal {number}",
                f"Its log: {self.paths.log(node)}",
            )
        child = self._children.pop(known.pid, None)
        if child is not None:
            child.wait(timeout=10)

    def restart_agent(self, node: str, number: int = signal.SIGKILL) -> ProcessId:
        """End a node's agent (SIGKILL unless told otherwise) and start another one."""
        self.stop_agent(node, number)
        return self.start_agent(node)

    def _start_agent(self, node: Node) -> ProcessId:
        child = agents.start(self.paths, node, self._state.options or AgentOptions())
        self._children[child.pid] = child
        started = ProcessId.of(child.pid)
        known: Mapping[str, ProcessId] = self._state.agents
        self._save(agents={**known, node.name: started})
        return started


def _check_free(plan: topology.Topology) -> None:
    """LbError if something that is not a lab of ours has one of the names."""
    if Paths(plan.name).run.exists():
        raise _exists(plan.name)
    taken = sorted(namespace.existing().intersection(plan.namespaces))
    if taken:
        raise LbError(
            f"network namespace {taken[0]!r} exists, but no lab {plan.name!r} is recorded",
            f"Choose another --name, or: lbctl lab down --name {plan.name}; "
            f"ip netns delete {taken[0]}",
        )


def _spoke(child: subprocess.Popen[str], timeout: float) -> bool:
    """Wait for a line on a server's standard output, and close our end of it."""
    assert child.stdout is not None
    with child.stdout as output:
        ready, _, _ = select.select([output], [], [], timeout)
        return bool(ready and output.readline())


def _exists(name: str) -> LbError:
    return LbError(f"lab {name!r} exists", f"Remove it first: lbctl lab down --name {name}")
