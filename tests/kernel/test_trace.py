"""`lbctl trace` on an instance's own maps: right answers, and not a byte of them changed."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from ebpf.compile import compiler
from ebpf.errors import LayoutError, LbError
from ebpf.instance import Instance, remove
from ebpf.layouts import Bundle
from ebpf.maps import ArrayMap, HashMap, PerCpuArray
from ebpf.maps.sizes import Sizes
from lbctl.addresses import parse_address, parse_prefix
from lbctl.cli.main import command as lbctl
from lbctl.model.records import Forwarding, ServiceObjects
from lbctl.model.updates import SourceStatus, Update
from lbctl.program import config, readback, writes
from lbctl.program.config import DataPathSettings
from lbctl.reconcile.reconciler import Reconciler
from lbctl.resolve.node import NodeFacts
from lbctl.trace.asking import Answer
from lbctl.trace.flows import parse_flow
from lbctl.trace.live import LiveNode
from lbctl.trace.private import PrivateNode, sizes_for
from lbctl.trace.programs import trace_bundle
from tests.kernel.support import table_programs
from tests.support.fake_cells import FakeFlowTable
from tests.support.k8s_objects import (
    as_service,
    as_slice,
    endpoint,
    endpoint_slice,
    port,
    service,
)

pytestmark = pytest.mark.kernel

BPFFS = Path("/sys/fs/bpf")
SMALL = Sizes(services=64, endpoints=256, flows=64)
NODE = NodeFacts(
    "worker-1",
    primary4=parse_address("192.168.0.2"),
    primary6=parse_address("fd00:2::2"),
    service_cidrs=(parse_prefix("172.30.0.0/16"), parse_prefix("fd00:30::/112")),
)
# How BPF instructions name the helpers that change a map.
CALL = 0x85
MAP_UPDATE, MAP_DELETE = 2, 3


def _objects() -> list[ServiceObjects]:
    """A service of two endpoints in two families, one without any, one with SCTP."""
    both = as_service(service("both", cluster_ips=("172.30.0.41", "fd00:30::41")))
    four = as_slice(
        endpoint_slice(
            "both-4",
            "both",
            ports=[port(8080)],
            endpoints=[endpoint("10.0.0.2"), endpoint("10.0.0.3")],
        )
    )
    six = as_slice(
        endpoint_slice(
            "both-6",
            "both",
            ports=[port(8080)],
            endpoints=[endpoint("fd00:1::2")],
            address_type="IPv6",
        )
    )
    empty = as_service(service("empty", cluster_ips=("172.30.0.42",)))
    sctp_ports = [port(3868, "diameter", "SCTP")]
    sctp = as_service(service("sctp", cluster_ips=("172.30.0.43",), ports=sctp_ports))
    sctp_slice = as_slice(
        endpoint_slice("sctp-4", "sctp", ports=sctp_ports, endpoints=[endpoint("10.0.0.4")])
    )
    return [
        ServiceObjects(both, (four, six)),
        ServiceObjects(empty),
        ServiceObjects(sctp, (sctp_slice,)),
    ]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return trace_bundle()


@pytest.fixture
def pin_dir(bundle: Bundle) -> Iterator[Path]:
    """An instance as an agent leaves it: programmed, and with flows in its tables."""
    path = BPFFS / f"tr-{os.getpid()}"
    try:
        with Instance.create_or_open(path, compiler.bundle("live"), SMALL) as instance:
            services = {s.service.key: s for s in _objects() if s.service}
            status = SourceStatus(synced=True)
            agent = Reconciler(instance, NODE)
            agent.take(Update(services, None, False, True, True, status))
            assert agent.apply(complete=True)
            config.store(instance.config, NODE, DataPathSettings(False))
            _add_flows(instance)
        yield path
    finally:
        remove(path)


def _add_flows(instance: Instance) -> None:
    """Flows that the packets of a trace would belong to, all towards an address of nobody."""
    table_programs.pin(instance, compiler.bundle("live"))
    table = FakeFlowTable()
    flows = [
        table.add_flow(proto, ("10.0.0.9", port), ("172.30.0.41", 80), (address, 80))
        for proto, address in ((6, "10.0.0.99"), (17, "10.0.0.98"))
        for port in range(32768, 32768 + 16)
    ]
    table_programs.open_flows(instance, "4", *(table.cells[places] for places in flows))


def _contents(path: Path) -> dict[str, object]:
    """Every byte of every map of an instance, by map; the ring of events is its reader's."""
    with Instance.open(path) as instance:
        found: dict[str, object] = {}
        for name in instance.map_names():
            opened = instance.map(name)
            if isinstance(opened, HashMap):
                found[name] = sorted(opened.items())
            elif isinstance(opened, PerCpuArray):
                found[name] = [opened.read(index) for index in range(opened.max_entries)]
            elif isinstance(opened, ArrayMap):
                found[name] = opened.records.tobytes()
        return found


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(lbctl, ["trace", *map(str, arguments)])


def _answers(*arguments: object) -> list[Answer]:
    result = _run(*arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout, type=list[Answer])


QUESTIONS = [
    (
        ("10.0.0.9", "172.30.0.41:80/tcp"),
        ("forward", ("10.0.0.2:8080", "10.0.0.3:8080"), False, "forwarded"),
    ),
    (
        ("10.0.0.2", "172.30.0.41:80"),
        ("forward", ("10.0.0.2:8080", "10.0.0.3:8080"), "mixed", "forwarded"),
    ),
    (
        ("fd00:1::9", "[fd00:30::41]:80/tcp"),
        ("forward", ("[fd00:1::2]:8080",), False, "forwarded"),
    ),
    (
        ("fd00:1::2", "[fd00:30::41]:80/tcp"),
        ("forward", ("[fd00:1::2]:8080",), True, "forwarded"),
    ),
    (("10.0.0.9", "172.30.0.43:3868/sctp"), ("forward", ("10.0.0.4:3868",), False, "forwarded")),
    (("10.0.0.9", "172.30.0.42:80/tcp"), ("reject", (), False, "no_endpoint")),
    (("10.0.0.9", "172.30.0.41:81/udp"), ("reject", (), False, "unknown_port")),
    (("10.0.0.9", "172.30.0.41:80/sctp"), ("reject", (), False, "unknown_port")),
    (("fd00:1::9", "[fd00:30::41]:53/udp"), ("reject", (), False, "unknown_port")),
    (("10.0.0.9", "172.30.0.99:80/tcp"), ("drop", (), False, "unallocated")),
    (("fd00:1::9", "[fd00:30::99]:80/sctp"), ("drop", (), False, "unallocated")),
    (("10.0.0.9", "10.0.0.2:8080/tcp"), ("pass", (), False, "not_service")),
    (("10.0.0.9", "192.0.2.1:443/udp"), ("pass", (), False, "not_service")),
]


@pytest.mark.parametrize(
    ("question", "expected"), QUESTIONS, ids=lambda part: " ".join(map(str, part))
)
def test_a_private_world_answers(
    bundle: Bundle, question: tuple[str, str], expected: tuple[object, ...]
) -> None:
    services = _objects()
    with PrivateNode(bundle, sizes_for(services, NODE), NODE) as world:
        world.apply(services, NODE)
        assert world.warnings() == []
        [traced] = world.ask([parse_flow(*question)], 100)
    assert _tail(traced.answer) == expected


@pytest.mark.parametrize(
    ("said", "default", "dsr"),
    [(None, "snat", False), (None, "dsr", True), ("dsr", "snat", True), ("snat", "dsr", False)],
)
def test_the_way_to_another_nodes_endpoint(
    bundle: Bundle, said: str | None, default: Forwarding, dsr: bool
) -> None:
    """With DSR it sees the client."""
    value = service("both", cluster_ips=("172.30.0.41",), externalIPs=["203.0.113.9"])
    if said:
        value["metadata"]["annotations"] = {"lbctl/forwarding": said}
    elsewhere = [endpoint("10.0.0.2", "worker-2"), endpoint("10.0.0.3", "worker-2")]
    part = endpoint_slice("both-4", "both", ports=[port(8080)], endpoints=elsewhere)
    services = [ServiceObjects(as_service(value), (as_slice(part),))]
    cidr = parse_prefix("10.0.0.0/8")
    node = msgspec.structs.replace(NODE, forwarding=default, cluster_cidrs=(cidr,))
    with PrivateNode(bundle, sizes_for(services, node), node) as world:
        world.apply(services, node)
        asked = ("198.51.100.7", "203.0.113.9:80"), ("198.51.100.7", "172.30.0.41:80")
        outer, inner = world.ask([parse_flow(*ends) for ends in asked], 100)
    backends = ("10.0.0.2:8080", "10.0.0.3:8080")
    assert _tail(outer.answer) == ("forward", backends, not dsr, "forwarded")
    assert outer.dsr is dsr
    assert (inner.answer.masquerade, inner.dsr) == (True, False)


def _tail(answer: Answer) -> tuple[object, ...]:
    return answer.verdict, answer.backends, answer.masquerade, answer.reason


def test_an_instance_answers_and_is_left_as_it_was(pin_dir: Path) -> None:
    before = _contents(pin_dir)
    with Instance.open(pin_dir) as instance:
        assert instance.flow_tables[0].rooms().used == 64
    for question, expected in QUESTIONS:
        [answer] = _answers(*question, "--pin-dir", pin_dir)
        assert _tail(answer) == expected, question
    assert _contents(pin_dir) == before


def test_an_instance_is_asked_beside_its_agent(pin_dir: Path) -> None:
    """Reading needs no lock, and finds what is programmed now."""
    with Instance.create_or_open(pin_dir, compiler.bundle("live")) as instance:
        planner, _ = readback.read(instance, now=10.0)
        gone = dict.fromkeys(planner.services)
        [before] = _answers("10.0.0.9", "172.30.0.41:80", "--pin-dir", pin_dir)
        writes.apply(planner.plan(gone, now=11.0), instance)
        [after] = _answers("10.0.0.9", "172.30.0.41:80", "--pin-dir", pin_dir)
    assert (before.verdict, after.verdict) == ("forward", "drop")


def test_the_name_of_the_service_is_found(pin_dir: Path, bundle: Bundle) -> None:
    with LiveNode(Instance.open(pin_dir), bundle) as world:
        [found, refused] = world.ask(
            [parse_flow("10.0.0.9", "172.30.0.41:80"), parse_flow("10.0.0.9", "172.30.0.42:80")], 1
        )
    assert found.service == "ns1/both:http/TCP/v4"
    assert refused.service == ""
    assert found.agreed


def test_an_instance_of_another_version_is_refused(pin_dir: Path, bundle: Bundle) -> None:
    spec = bundle.maps["services"]
    other = msgspec.structs.replace(spec, value=bundle.maps["slots"].value)
    changed = msgspec.structs.replace(bundle, maps={**bundle.maps, "services": other})
    with pytest.raises(LayoutError, match="services") as caught:
        LiveNode(Instance.open(pin_dir), changed)
    assert caught.value.hint


def test_no_program_of_a_trace_can_change_a_map(bundle: Bundle) -> None:
    """They add no flow and touch no LRU order: they neither write nor know the flow tables."""
    assert len(bundle.programs) == 17
    for found in bundle.programs.values():
        calls = {
            struct.unpack_from("=i", found.insns, at + 4)[0]
            for at in range(0, len(found.insns), 8)
            if found.insns[at] == CALL
        }
        assert not calls & {MAP_UPDATE, MAP_DELETE}, found.name
        known = {name for _, name in found.relocations}
        assert not known & {"counters", "service_counters", "cpus"}, found.name
        tables = ("cells", "control", "states", "table")
        assert not [name for name in known if name.startswith(tables)], found.name


def test_nothing_is_pinned_and_no_descriptor_stays(bundle: Bundle) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    pins = set(BPFFS.iterdir())
    services = _objects()
    counts = []
    for _ in range(3):
        with PrivateNode(bundle, sizes_for(services, NODE), NODE) as world:
            world.apply(services, NODE)
            world.ask([parse_flow("10.0.0.9", "172.30.0.41:80")], 1)
            assert {p for p in BPFFS.iterdir() if p.name.startswith("tr-")} <= pins
        counts.append(opened())
    assert len(set(counts)) == 1


def test_changes_are_written_as_differences(bundle: Bundle) -> None:
    """The same world after a change: the service that lost its endpoints refuses, and recovers."""
    full = _objects()
    bare = [ServiceObjects(objects.service) for objects in full]
    flow = parse_flow("10.0.0.9", "172.30.0.41:80")
    verdicts = []
    with PrivateNode(bundle, sizes_for(full, NODE), NODE) as world:
        for services in (full, bare, full, [], full):
            world.apply(services, NODE)
            verdicts += [t.answer.verdict for t in world.ask([flow], 5)]
    assert verdicts == ["forward", "reject", "forward", "drop", "forward"]


@pytest.mark.parametrize("count", [1, 7])
def test_samples_find_every_backend(bundle: Bundle, count: int) -> None:
    endpoints = [endpoint(f"10.0.0.{n}") for n in range(1, count + 1)]
    services = [
        ServiceObjects(as_service(service()), (as_slice(endpoint_slice(endpoints=endpoints)),))
    ]
    with PrivateNode(bundle, sizes_for(services, NODE), NODE) as world:
        world.apply(services, NODE)
        [traced] = world.ask([parse_flow("10.0.1.1", "172.30.0.41:80")], 200)
    assert len(traced.answer.backends) == count


def _weighed(algorithm: str) -> list[ServiceObjects]:
    """Two slices, one with half the weight and one endpoint more, and one of none."""
    made = service()
    made["metadata"]["annotations"] = {"lbctl/algorithm": algorithm}
    parts = []
    for number, weight, hosts in ((1, "100", (1,)), (2, "50", (2, 3)), (3, "0", (4,))):
        part = endpoint_slice(f"s-{number}", endpoints=[endpoint(f"10.0.0.{h}") for h in hosts])
        part["metadata"]["annotations"] = {"lbctl/weight": weight}
        parts.append(as_slice(part))
    return [ServiceObjects(as_service(made), tuple(parts))]


@pytest.mark.parametrize(
    "algorithm", ["random", "round-robin", "least-connections", "maglev", "source-hash"]
)
def test_probabilities_are_those_of_the_maps(bundle: Bundle, algorithm: str) -> None:
    services = _weighed(algorithm)
    with PrivateNode(bundle, sizes_for(services, NODE), NODE) as world:
        world.apply(services, NODE)
        assert world.warnings() == []
        [traced] = world.ask([parse_flow("10.0.1.1", "172.30.0.41:80")], 200)
    found = traced.answer.probabilities
    assert found.keys() == {*traced.answer.backends}
    assert sum(found.values()) == pytest.approx(1)
    if algorithm == "source-hash":  # one client, one backend
        assert [*found.values()] == [1]
    elif algorithm != "maglev":
        assert [*found.values()] == pytest.approx([0.5, 0.25, 0.25], abs=1e-3)
    else:
        assert max(found, key=found.__getitem__) == "10.0.0.1:80"


def test_more_service_ranges_than_fit_are_an_error(bundle: Bundle) -> None:
    ranges = tuple(parse_prefix(f"10.{n}.0.0/16") for n in range(5))
    node = msgspec.structs.replace(NODE, service_cidrs=ranges)
    with (
        PrivateNode(bundle, sizes_for([], node), node) as world,
        pytest.raises(LbError, match="5 ranges"),
    ):
        world.apply([], node)
