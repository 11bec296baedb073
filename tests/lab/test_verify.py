"""Faults made by hand while traffic runs: each is named by `lbctl verify`, and put right by the
agent within seconds, or by `verify --repair` where there is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from ebpf.instance import Instance
from ebpf.kernel import libbpf
from ebpf.layouts import tail_programs
from ebpf.programs import open_array
from lbctl import status
from lbctl.datapath.frontends import Frontends
from lbctl.inspect import names
from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from tests.lab.support.bystanders import STEADY, Bystanders, bystanders, targets
from tests.lab.support.faults import service, wait_answers
from tests.lab.support.labs import Responder, addresses, endpoint
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

NODE = "node1"
SERVERS = ("pod2", "pod4")  # of the other node
VICTIM = "victim"
GUARDED = "192.0.2.99"
SOON = 15.0


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("vf", nodes=2, pods=2)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        STEADY.publish(made, SERVERS)
        victim = service(
            made,
            VICTIM,
            SERVERS,
            spec={"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"]},
            ingress=[GUARDED],
        )
        made.apply(VICTIM, victim)
        made.wait_programmed(f"default/{VICTIM}", [endpoint(made, name) for name in SERVERS])
        yield made
    made.down()


@pytest.fixture(scope="module")
def traffic(lab: Lab) -> Iterator[Bystanders]:
    with bystanders(lab, targets(lab, SERVERS)) as made:
        yield made


class Found(NamedTuple):
    code: int
    differences: list[dict[str, str]]
    repaired: list[dict[str, str]]

    @property
    def kinds(self) -> set[str]:
        return {one["kind"] for one in self.differences}


def verify(lab: Lab, *more: str) -> Found:
    pin_dir = str(lab.pin_dir(NODE))
    done = lab.exec(NODE, lbctl_command("verify", "-o", "json", "--pin-dir", pin_dir, *more))
    assert done.returncode in (0, 5), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return Found(done.returncode, found["differences"], found["repaired"])


def corrections(lab: Lab) -> dict[str, int]:
    said = status.read(lab.pin_dir(NODE))
    return dict(said.audit.corrections) if said and said.audit else {}


@contextmanager
def maps(lab: Lab) -> Iterator[Instance]:
    with Instance.open(lab.pin_dir(NODE), readonly=False) as instance:
        yield instance


def ids(instance: Instance) -> list[int]:
    """Service ids of the victim."""
    return sorted(names.find(instance.names, f"default/{VICTIM}"))


def lose_address(lab: Lab) -> None:
    with maps(lab) as instance:
        frontends, of_it = Frontends(instance.frontends), ids(instance)
        entries = frontends.read_all()
        columns = zip(entries.keys, entries.services.tolist(), strict=True)
        frontends.delete([key.tobytes() for key, service in columns if service in of_it])


def lose_endpoints(lab: Lab) -> None:
    """The victim's are not known by their addresses, as often as it has them."""
    with maps(lab) as instance:
        records = instance.backends.records
        Frontends(instance.frontends).release(records[np.isin(records["service"], ids(instance))])


def lose_name(lab: Lab) -> None:
    with maps(lab) as instance:
        number = ids(instance)[0]
        instance.names.delete(instance.names.spec.key.pack(service=number))


def empty_sets(lab: Lab) -> None:
    with maps(lab) as instance:
        for number in ids(instance):
            instance.services.store_word(number, "cluster", 0)


def move_backends(lab: Lab) -> None:
    with maps(lab) as instance:
        records = instance.backends.records
        for number in ids(instance):
            records["port"][records["service"] == number] ^= 0x100


def mislead_slots(lab: Lab) -> None:
    """To another service's backends."""
    with maps(lab) as instance:
        number = ids(instance)[0]
        word = int(instance.services.records["cluster"][number])
        owners = instance.backends.records["service"]
        foreign = next(i for i, o in enumerate(owners.tolist()) if o and o != number)
        instance.slots.records["backend"][word & 0xFFFFFFFF] = foreign


def lose_ranges(lab: Lab) -> None:
    with maps(lab) as instance:
        for key, _ in list(instance.source_ranges.items()):
            instance.source_ranges.delete(key)


def link(lab: Lab, direction: str) -> Path:
    """Of a pod that has no part in the traffic."""
    (pod,) = (pod for pod in lab.pods if pod.name == "pod3")
    return lab.pin_dir(NODE) / "links" / f"{pod.interface}-{direction}"


def detach_link(lab: Lab) -> None:
    libbpf.link_detach(str(link(lab, "ingress")))


def unpin_link(lab: Lab) -> None:
    link(lab, "egress").unlink()


def replace_program(lab: Lab) -> None:
    (generation,) = (lab.pin_dir(NODE) / "programs").iterdir()
    fd, program = libbpf.obj_get(str(link(lab, "ingress"))), generation / "entry_to_net"
    other = libbpf.obj_get(str(program))
    libbpf.link_update(fd, other, "the test's link")
    os.close(fd)
    os.close(other)


def detach_hook(lab: Lab) -> None:
    libbpf.link_detach(str(lab.pin_dir(NODE) / "links" / "cgroup-connect4"))


def unpin_hook(lab: Lab) -> None:
    (lab.pin_dir(NODE) / "links" / "cgroup-sendmsg6").unlink()


def unpin_map(lab: Lab) -> None:
    (lab.pin_dir(NODE) / "maps" / "frontends").unlink()


def unpin_meta(lab: Lab) -> None:
    (lab.pin_dir(NODE) / "meta").unlink()


def unpin_programs(lab: Lab) -> None:
    (generation,) = (lab.pin_dir(NODE) / "programs").iterdir()
    for path in generation.iterdir():
        path.unlink()


def lose_program(lab: Lab) -> None:
    """Out of the program array: the one that refuses, which the traffic has no need of."""
    (generation,) = (lab.pin_dir(NODE) / "programs").iterdir()
    with maps(lab) as instance:
        slot = tail_programs(instance.enums)["programs"]["refuse6"]
    array = open_array(generation / "programs")
    libbpf.library().bpf_map_delete_elem(array.fd, slot.to_bytes(4, sys.byteorder))
    array.close()


class Fault(NamedTuple):
    """What is done, what `verify` calls it, and what the agent does."""

    act: Callable[[Lab], None]
    difference: str
    correction: str


FAULTS = [
    Fault(lose_address, "service", "frontend"),
    Fault(lose_name, "service", "name"),
    Fault(empty_sets, "service", "service"),
    Fault(move_backends, "service", "endpoints"),
    Fault(mislead_slots, "service", "endpoints"),
    Fault(lose_ranges, "service", "source range"),
    Fault(lose_endpoints, "endpoint", "endpoint entry"),
    Fault(detach_link, "interface", "interface"),
    Fault(unpin_link, "interface", "interface"),
    Fault(replace_program, "interface", "interface"),
    Fault(detach_hook, "socket hook", "socket hook"),
    Fault(unpin_hook, "socket hook", "socket hook"),
    Fault(unpin_map, "pin", "pin"),
    Fault(unpin_meta, "pin", "pin"),
    Fault(unpin_programs, "pin", "pin"),
    Fault(lose_program, "program", "program"),
]


@contextmanager
def frozen(lab: Lab) -> Iterator[None]:
    """The agent does nothing meanwhile; the data path does."""
    agent = lab.agent(NODE)
    assert agent
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(agent.pid, signal.SIGCONT)


def works(lab: Lab) -> None:
    for address in addresses(VICTIM):
        wait_answers(lab, "pod1", address, set(SERVERS))


def test_nothing_differs_where_nothing_is_wrong(lab: Lab, traffic: Bystanders) -> None:
    traffic.unharmed()
    found = verify(lab)
    assert found == (0, [], [])


def test_in_another_network_namespace_it_says_where_to_run(lab: Lab) -> None:
    """There all interfaces would differ, and none of it would be so."""
    command = lbctl_command("verify", "--pin-dir", str(lab.pin_dir(NODE)))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    agent = lab.agent(NODE)
    assert agent
    assert f"nsenter --net=/proc/{agent.pid}/ns/net" in done.stderr


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.act.__name__)
def test_a_fault_is_named_and_put_right(lab: Lab, traffic: Bystanders, fault: Fault) -> None:
    before = corrections(lab).get(fault.correction, 0)
    with frozen(lab):
        fault.act(lab)
        found = verify(lab)
    assert found.code == 5
    assert fault.difference in found.kinds, found
    wait_until(
        lambda: corrections(lab).get(fault.correction, 0) > before,
        SOON,
        lambda: f"{corrections(lab)} after {fault.act.__name__}",
    )
    said = status.read(lab.pin_dir(NODE))
    assert said
    assert said.audit
    assert any(fault.correction in text for text in said.audit.lately)
    wait_until(lambda: not verify(lab).differences, SOON, lambda: str(verify(lab)))
    works(lab)
    traffic.unharmed()


def test_without_an_agent_it_is_put_right_at_once(lab: Lab, traffic: Bystanders) -> None:
    lab.stop_agent(NODE)
    for act in (lose_address, move_backends, lose_endpoints, lose_ranges, detach_link, unpin_hook):
        act(lab)
    found = verify(lab)
    # Flows of the endpoints that were moved have none any more.
    assert found.kinds - {"flow"} == {"service", "endpoint", "interface", "socket hook"}
    after = verify(lab, "--repair")
    assert (after.code, after.differences) == (0, [])
    assert {one["kind"] for one in after.repaired} == found.kinds
    works(lab)
    traffic.unharmed()
    lab.start_agent(NODE)
    lab.wait_ready()


def test_an_agent_that_is_asked_reads_everything_anew(lab: Lab, traffic: Bystanders) -> None:
    with frozen(lab):
        lose_address(lab)
    found = verify(lab, "--repair")
    assert found.code == 0
    works(lab)
    said = status.read(lab.pin_dir(NODE))
    assert said
    assert said.audit
    assert said.audit.corrections["frontend"]
    traffic.unharmed()
