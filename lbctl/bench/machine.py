"""What the figures of a run depend on: the machine, its load, its tools, and the method."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from lbctl.bench.dataset import PORT, TARGET_PORT
from lbctl.bench.options import Options
from lbctl.bench.records import Results

_TOOLS = {
    "iptables": ["iptables", "--version"],
    "nft": ["nft", "--version"],
    "wrk": ["wrk", "-v"],
    "iperf3": ["iperf3", "--version"],
}
_TOOL_TIMEOUT = 10.0
LOAD = "load at the start"


def facts() -> dict[str, str]:
    """The machine, as it is now. Load is that of the last minute: what is not ours disturbs."""
    found = {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": f"{os.cpu_count()} × {_processor()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB",
        LOAD: " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "python": platform.python_version(),
    }
    for name, command in _TOOLS.items():
        found[name] = _version(command)
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "processor of unknown name"


def _version(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "not installed"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0][:60] if lines else "unknown"


def method(options: Options, results: Results) -> list[str]:
    """How it was measured, in sentences for a report."""
    effort = options.effort
    generator = results.about.machine.get("generator", "C")
    kube_proxy = results.about.machine.get("kube-proxy", "")
    pinned = f"on CPU {options.cpu}" if options.cpu >= 0 else "on any CPU"
    return [
        "Every peer has a node of its own between a client and one server, in network namespaces "
        "of this machine; all peers of a number of services are loaded at the same time and take "
        "turns, a different one first in each turn.",
        f"A service has {options.endpoints} endpoints. Connections go to {options.targets} "
        f"services evenly spaced over all, port {PORT}, which leads to port {TARGET_PORT}. The "
        "floor connects to the endpoints themselves through a node without any rule.",
        f"The generator ({generator}) runs {pinned} and opens both ends of a connection in one "
        "thread, so that a packet's whole way is inside one system call and no scheduler is timed. "
        f"Per peer: {effort.turns} turns of {effort.connections} connections for latency, as many "
        f"for the rate, and {effort.roundtrips} round trips of one byte.",
        "connect_latency is connect() alone; connection_rate counts whole connections (open, "
        "accept, a byte each way, close), one after another. Ratios are of a peer's turn to the "
        "floor's same turn, then the median of those: what disturbs one disturbs the other.",
        "roundtrip_added is the median of a "
        "turn less the floor's median of the same turn; the floor's own row is how far its turns "
        "differ from each other, which is the noise. cpu_per_packet is the CPU time of everything, "
        "both ends included, per packet passing the node.",
        f"roundtrip_64k: a peer and the floor have {effort.many:,} connections open each, and take "
        f"{effort.many_turns} turns of {effort.many_roundtrips:,} round trips, each on another "
        "connection; of sockets and flows nothing is in a cache then. Measured at one number "
        "of services.",
        f"request_rate (wrk, 8 kept-alive connections) and throughput (iperf3, one connection): "
        f"{effort.load_turns} turns of {effort.load_seconds} s; both ends and the node share the "
        "CPUs.",
        (
            f"iptables and nftables are kube-proxy itself ({kube_proxy}): it lists and watches the "
            "same API server as lbctl, which speaks JSON alone, no protobuf, and knows no lists as "
            "watches. Between two syncs it leaves its minSyncPeriod, so that changes one right "
            "after the other wait for it; one after a quiet time does not. "
            if kube_proxy
            else "Rules have the shape kube-proxy writes, and are loaded by the tools it uses, "
            "without kube-proxy: its own time and memory are not in load_time, change_time or "
            "agent_memory of those peers. "
        )
        + "lbctl is a whole agent that lists and watches an API server of the harness: "
        "compile (cached), load, attach, list and program are all in its load_time.",
        "change_time: from handing over the change (to the tool, or as an event to the agent) to "
        "the first connection that reached the new endpoint.",
        "kernel_memory: of rules, what the memory cgroup of the loading tool, or of kube-proxy, is "
        "charged; of lbctl, all its maps. Flow tables have their full size from the start; "
        "connection tracking entries are not counted for anyone.",
        "packet_ns and packet_instructions: the two directions of an established IPv4 TCP "
        "connection, above an empty program, by test runs in the kernel with a driver that "
        "restores the packet; static instructions of the programs such packets run through.",
        "packet_rate: TCP packets of 40 bytes, in the middle of a connection between a client "
        "outside and an endpoint of another node, in both directions, on one CPU. Frames are made "
        "by live-frame test runs at the node's devices, are handed up (lbctl-xdp: sent on by our "
        "program there), and counted by programs behind them; making them, leaving by a virtual "
        "device and being counted is in every rate. The rate of frames that are dropped at once, "
        "and of a program that only rewrites and sends back, is beside them.",
    ]
