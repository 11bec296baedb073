"""The steps of the demo, in order. Each returns a phase: what was sent, and what became of it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator

from lbctl.demo.outcome import Outcome, Phase, show_spread
from lbctl.demo.services import CLIENT, DNS, WEB, set_endpoints, ways
from lbctl.lab import sessions
from lbctl.lab.cluster import Lab
from lbctl.lab.topology import Pod

REQUESTS = "300"  # to each address, to see the spread
RATE = "100"  # requests per second and address while things change
SETTLE = 0.5  # seconds of traffic before and after a change
AWAY = 1.0  # seconds without agents
TIMEOUT = 60.0  # seconds until agents have programmed a change

Say = Callable[[str], None]


def run(lab: Lab, outcome: Outcome, say: Say) -> None:
    """Run all steps, adding each phase to `outcome` as soon as it is over."""
    say("Starting web servers in pod1 to pod4, name servers in pod4 and pod5.")
    start_servers(lab)
    wait(lab, WEB.key, ["pod1", "pod2", "pod3"])
    wait(lab, DNS.key, ["pod4", "pod5"])
    say(
        f"Calling two services from {CLIENT}. No machine has their addresses: the programs on the\n"
        "    pod's link put a pod's address in their place, and take it out of the replies."
    )
    outcome.phases.append(phase := Phase("nothing"))
    _ask(lab, phase, REQUESTS, {"web": set(WEB.pods), "dns": set(DNS.pods)})
    show_spread(phase)
    with kept_connections(lab) as finish:
        outcome.phases.append(change_endpoints(lab, say))
        outcome.phases.append(kill_agents(lab, say))
        outcome.phases.append(finish())


def start_servers(lab: Lab) -> None:
    sessions.start_http(lab, pods_of(lab, ["pod1", "pod2", "pod3", "pod4"]))
    sessions.start_udp(lab, pods_of(lab, ["pod4", "pod5"]))


def change_endpoints(lab: Lab, say: Say) -> Phase:
    """Endpoints leave and join both services under traffic; those that left get nothing new."""
    phase = Phase("pod2 left web and pod4 joined it, pod4 left dns")
    with traffic(lab, phase):
        say("While requests run, taking pod2 out of web and pod4 out of dns.")
        set_endpoints(lab, WEB, ["pod1", "pod3"])
        set_endpoints(lab, DNS, ["pod5"])
        wait(lab, WEB.key, ["pod1", "pod3"])
        wait(lab, DNS.key, ["pod5"])
        _ask(lab, phase, "60", {"web": {"pod1", "pod3"}, "dns": {"pod5"}})
        say("Adding pod4 to web.")
        set_endpoints(lab, WEB, ["pod1", "pod3", "pod4"])
        wait(lab, WEB.key, ["pod1", "pod3", "pod4"])
        _ask(lab, phase, "60", {"web": {"pod1", "pod3", "pod4"}, "dns": {"pod5"}})
    return phase


def kill_agents(lab: Lab, say: Say) -> Phase:
    """All agents die under traffic; an endpoint changes before they are back, and they catch up."""
    phase = Phase("all agents were killed, and started again later")
    with traffic(lab, phase):
        say("Killing the agents of all nodes (SIGKILL). The programs stay in the kernel.")
        for node in lab.nodes:
            lab.stop_agent(node.name, signal.SIGKILL)
        set_endpoints(lab, DNS, ["pod4", "pod5"])
        time.sleep(AWAY)
        say("Starting them again; meanwhile pod4 came back to dns, which they now find out.")
        for node in lab.nodes:
            lab.start_agent(node.name)
        lab.wait_ready(timeout=TIMEOUT)
        wait(lab, DNS.key, ["pod4", "pod5"])
        _ask(lab, phase, "60", {"web": {"pod1", "pod3", "pod4"}, "dns": {"pod4", "pod5"}})
    return phase


@contextlib.contextmanager
def traffic(lab: Lab, phase: Phase) -> Iterator[None]:
    """Requests to every address over new connections, for the time of a block and a bit around."""
    with contextlib.ExitStack() as stack:
        clients = {
            way.label: stack.enter_context(
                sessions.background(lab, CLIENT, way.example.mode, way.target, "--rate", RATE)
            )
            for way in ways()
        }
        time.sleep(SETTLE)
        yield
        time.sleep(SETTLE)
        for label, client in clients.items():
            phase.add(label, client.finish())


@contextlib.contextmanager
def kept_connections(lab: Lab) -> Iterator[Callable[[], Phase]]:
    """Connections that stay open through all that follows; calling the result ends them."""
    with contextlib.ExitStack() as stack:
        options = ("--keep", "--threads", "4", "--rate", "40")
        clients = {
            way.label: stack.enter_context(
                sessions.background(lab, CLIENT, way.example.mode, way.target, *options)
            )
            for way in ways()
            if way.example is WEB
        }

        def finish() -> Phase:
            phase = Phase("all of that: numbered messages over connections opened before")
            for label, client in clients.items():
                phase.add(label, client.finish())
            return phase

        yield finish


def wait(lab: Lab, service: str, pods: list[str]) -> None:
    lab.wait_programmed(service, pods_of(lab, pods), timeout=TIMEOUT)


def pods_of(lab: Lab, names: list[str]) -> list[Pod]:
    return [pod for pod in lab.pods if pod.name in names]


def _ask(lab: Lab, phase: Phase, requests: str, expected: dict[str, set[str]]) -> None:
    """Ask every address anew: exactly the expected pods of each service must answer."""
    for way in ways():
        options = ("--requests", requests, "--rate", "400", "--timeout", "2", "--threads", "16")
        report = sessions.run_client(lab, CLIENT, way.example.mode, way.target, *options)
        phase.add(way.label, report)
        wanted = expected[way.example.name]
        if set(report.servers) != wanted:
            phase.failures.append(
                f"{phase.title}: {way.label}: answered by {_names(report.servers)}, "
                f"not by {_names(wanted)}"
            )


def _names(pods: Iterable[str]) -> str:
    return ", ".join(sorted(pods)) or "nobody"
