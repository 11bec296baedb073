"""A whole run: builds the sites, loads the peers, measures, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence

from lbctl.bench import kubeproxy, machine, manyflows, measures
from lbctl.bench.dataset import TARGET_PORT, Dataset
from lbctl.bench.emptyhooks import EmptyHooks
from lbctl.bench.generator import Aim, Generator
from lbctl.bench.measures import CONNECTION_MEASURES, Measuring
from lbctl.bench.options import PACKETS, RATE, Options
from lbctl.bench.ours import AgentPeer
from lbctl.bench.peers import (
    Bare,
    LoadedOtherwise,
    Peer,
    Unavailable,
    ipvs_reason,
    rule_peers,
)
from lbctl.bench.records import (
    ALL,
    FLOOR,
    HOOKS,
    PEERS,
    RATES,
    WITHOUT_SERVICES,
    Record,
    Results,
    summary,
)
from lbctl.bench.testbed import Testbed
from lbctl.errors import LbError

Progress = Callable[[str, str], None]  # what is being done, and how far it is

_WITH_TEST_RUN = ("lbctl-tc", "lbctl-xdp")
_XDP_ALONE = (
    "its packets alone are measured (packet_ns, packet_rate): between namespaces of one machine "
    "the stacks at both ends cost more than a driver spares the node between them"
)
# What a node without services cannot have, so that nobody waits for it.
_OF_SERVICES = {"load_time", "change_time", "agent_memory", "kernel_memory"}


def run(options: Options, results: Results, progress: Progress) -> None:
    """Measure what `results` do not have yet. LbError; interruption cleans up and goes on up."""
    if any(peer in kubeproxy.PEERS for peer in options.peers):
        kubeproxy.settle_on(results, options.kube_proxy, options.min_sync_period)
    results.forget_reasons(options.peers, options.services)
    known = results.about.machine
    results.about.machine = known | machine.facts()
    if load := known.get(machine.LOAD):  # what came before this run's own
        results.about.machine[machine.LOAD] = load
    found = [peer for peer in all_peers(options) if peer.name in options.peers]
    peers = []
    for peer in found:
        if reason := peer.unavailable():
            results.miss(peer.name, 0, ALL, reason)
        else:
            peers.append(peer)
    sizes = [
        count
        for count in options.services
        if _lacks(results, peers, count, options.measures_at(count))
    ]
    if sizes and any(isinstance(peer, AgentPeer) for peer in peers):
        results.about.machine["programs"] = _compile(progress)
    if any(measure in PACKETS for measure in options.measures):
        _packets(options, results, progress)
    if RATE in options.measures:
        _packet_rates(options, results, progress)
    for count in sizes:
        _one_size(options, Dataset(count, options.endpoints), peers, results, progress)
        results.save_about()
    results.about.method = machine.method(options, results)
    results.save_about()


def _compile(progress: Progress) -> str:
    """Fills the compiler's cache, so that every agent finds the same; says what that took."""
    from ebpf.compile import compiler

    progress("compiling the programs", "")
    start = time.monotonic()
    compiler.bundle("live")
    took = time.monotonic() - start
    return f"compiled in {took:.1f} s before the run" if took > 1 else "compiled by an earlier run"


def all_peers(options: Options) -> list[Peer]:
    """Every peer there is, in the order of the tables."""
    binary = options.kube_proxy
    made: list[Peer] = [
        Bare(),
        EmptyHooks(),
        *(
            kubeproxy.peers(binary, options.min_sync_period)
            if binary
            else rule_peers(options.saved)
        ),
        Unavailable("ipvs", ipvs_reason()),
        AgentPeer("lbctl-tc"),
        AgentPeer("lbctl-fast", fast_path="on"),
        AgentPeer("lbctl-socket", socket_lb="all"),
        Unavailable("lbctl-xdp", _XDP_ALONE),
    ]
    return sorted(made, key=lambda peer: PEERS.index(peer.name))


def _lacks(results: Results, peers: Sequence[Peer], count: int, wanted: Sequence[str]) -> bool:
    """Whether something is still to be measured; what a peer can never have does not count."""
    for peer in peers:
        for measure in wanted:
            if peer.name in WITHOUT_SERVICES and measure in _OF_SERVICES:
                continue
            if measure == "agent_memory" and not peer.runs_agent:
                continue
            if not results.has(peer.name, count, measure):
                return True
    return False


def _one_size(
    options: Options,
    data: Dataset,
    peers: Sequence[Peer],
    results: Results,
    progress: Progress,
) -> None:
    """All measures of one number of services, with all peers side by side."""

    def say(what: str, detail: str) -> None:
        progress(f"{data.services:,} services: {what}", detail)

    wanted = set(options.measures_at(data.services))
    names = [FLOOR, *(peer.name for peer in peers if peer.name != FLOOR)]
    with Testbed(options.name, names) as testbed:
        try:
            loaded = _load(options, testbed, data, peers, results, say)
            generator = Generator(testbed, options.cpu)
            results.about.machine["generator"] = (
                "C" if generator.compiled else "Python: no C compiler here; ratios are too small"
            )
            aims = {peer.name: _aim(options, data, peer) for peer in loaded}
            _prepare_saved(options, testbed)
            measuring = Measuring(
                testbed, data, tuple(loaded), aims, generator, options.effort, results, say
            )
            if wanted & set(CONNECTION_MEASURES):
                measures.connections(measuring)
            if wanted & {"request_rate", "throughput"}:
                measures.loads(measuring)
            if "change_time" in wanted:
                measures.changes(measuring)
            _memory(loaded, data, results)
            if manyflows.MEASURE in wanted:  # last, since tables grow by it
                manyflows.measure(measuring)
        finally:
            for peer in peers:
                peer.stop()


def _load(
    options: Options,
    testbed: Testbed,
    data: Dataset,
    peers: Sequence[Peer],
    results: Results,
    say: Progress,
) -> list[Peer]:
    """The peers that are ready to be measured; the floor is the first of them, asked for or not."""
    loaded: list[Peer] = [Bare()]
    for peer in peers:
        if peer.name == FLOOR:
            continue
        say(f"loading {peer.name}", "")
        try:
            took = peer.load(testbed, data, options.timeout)
        except LoadedOtherwise as error:
            results.miss(peer.name, data.services, "load_time", error.message)
        except LbError as error:
            results.miss(peer.name, data.services, ALL, error.message)
            peer.stop()  # what is not ready may still be at it
            continue
        else:
            if took is not None:
                results.add([summary(peer.name, data.services, "load_time", [took])])
        loaded.append(peer)
    return loaded


def _aim(options: Options, data: Dataset, peer: Peer) -> Aim:
    """Where a peer's client connects to: to endpoints without services, else to those."""
    if peer.saved and options.saved:
        found = options.saved.services
        count = min(options.targets, len(found))
        return Aim(
            tuple(found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count)),
            options.saved.port,
        )
    if peer.name in WITHOUT_SERVICES:
        return Aim(tuple(data.endpoint_targets(options.targets)), TARGET_PORT)
    return Aim(tuple(data.targets(options.targets)), TARGET_PORT)


def _prepare_saved(options: Options, testbed: Testbed) -> None:
    if options.saved:
        testbed.answer_on(options.saved.endpoints)


def _memory(peers: Sequence[Peer], data: Dataset, results: Results) -> None:
    for peer in peers:
        if peer.name in WITHOUT_SERVICES:
            continue
        kernel = peer.kernel_memory()
        if kernel is None:
            reason = "nothing counts the kernel memory of rules here (memory cgroup)"
            results.miss(peer.name, data.services, "kernel_memory", reason)
        else:
            results.add([summary(peer.name, data.services, "kernel_memory", [kernel / 1e6])])
        agent = peer.agent_memory()
        if agent is None:
            reason = "rules are loaded directly: no agent runs"
            results.miss(peer.name, data.services, "agent_memory", reason)
        else:
            results.add([summary(peer.name, data.services, "agent_memory", [agent / 1e6])])


def _no_test_run(peer: str) -> str:
    if peer == HOOKS:
        return "an empty program: what others take is said above it"
    if peer.startswith("lbctl"):
        return "socket programs have no test run in the kernel"
    return "netfilter and routing have no test run that a packet could be timed in"


def _packets(options: Options, results: Results, progress: Progress) -> None:
    """packet_ns and packet_instructions: of ours only, and the same for any number of services."""
    for peer in PEERS:
        if peer in options.peers and peer not in _WITH_TEST_RUN:
            for measure in PACKETS:
                results.miss(peer, 0, measure, _no_test_run(peer))
    _driver_packets(options, results, progress)
    if "lbctl-tc" not in options.peers or all(results.has("lbctl-tc", 1, m) for m in PACKETS):
        return
    from lbctl.bench import packetcost  # compiles

    rounds, repeat = options.effort.packet_rounds, options.effort.packet_repeat
    try:
        with _on_one_cpu(options):
            found = packetcost.all_costs(rounds, repeat, lambda name: progress("packets", name))
    except LbError as error:
        for measure in PACKETS:
            results.miss("lbctl-tc", 0, measure, error.message)
        return
    results.about.packets = [*found.costs, *results.about.packets]
    results.about.instructions = found.instructions
    results.add(found.records)


def _driver_packets(options: Options, results: Results, progress: Progress) -> None:
    """packet_ns at a driver, and beside it what TC takes for the same packets."""
    if "lbctl-xdp" not in options.peers or results.has("lbctl-xdp", 1, "packet_ns"):
        return
    from lbctl.bench import drivercost  # compiles

    results.miss("lbctl-xdp", 0, "packet_instructions", "as many as its way to the next hop takes")
    rounds, repeat = options.effort.packet_rounds, options.effort.packet_repeat
    try:
        with _on_one_cpu(options):
            found = drivercost.costs(rounds, repeat, lambda name: progress("packets", name))
    except LbError as error:
        results.miss("lbctl-xdp", 0, "packet_ns", error.message)
        return
    results.about.packets = [*results.about.packets, *found.packets]
    results.add(found.records)


def _packet_rates(options: Options, results: Results, progress: Progress) -> None:
    """packet_rate: the same for any number of services, since no rule is asked for such packets."""
    from lbctl.bench import forwarding  # compiles

    wanted = [peer for peer in forwarding.PEERS if peer in options.peers]
    if all(results.has(peer, 1, RATE) for peer in wanted):
        return
    rounds, frames = options.effort.packet_rounds, options.effort.packet_repeat
    try:
        with _on_one_cpu(options):
            found = forwarding.rates(
                wanted, rounds, frames, lambda what: progress("packets per second", what)
            )
    except LbError as error:
        results.miss("lbctl-xdp", 0, RATE, error.message)
        return
    for peer, reason in found.missing.items():
        results.miss(peer, 0, RATE, reason)
    results.about.packet_rates = found.references
    results.add(found.records)


@contextlib.contextmanager
def _on_one_cpu(options: Options) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {options.cpu if options.cpu >= 0 else max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def worse(record: Record) -> bool:
    """Whether a record's ratio says that it is worse than the floor."""
    if record.ratio_to_floor is None:
        return False
    return record.ratio_to_floor < 1 if record.measure in RATES else record.ratio_to_floor > 1
