"""A packet to a service address: which service it is for, and which backend it gets."""

import random
from collections import Counter

import pytest

from ebpf.kernel.testrun import CHECKSUM_COMPLETE
from tests.kernel.support import model, packets
from tests.kernel.support.conversation import BACKENDS, CLIENT, PORT, SERVICE, Conversation, serve
from tests.kernel.support.packets import PLAIN, SHAPES, TCP_SHAPES, Shape
from tests.kernel.support.world import World

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("flags", [0, CHECKSUM_COMPLETE], ids=["plain", "complete"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_and_back(world: World, shape: Shape, flags: int) -> None:
    """Bytes as predicted in both directions, with every kind of header around the ports."""
    talk = Conversation(world, shape, serve(world, shape), flags=flags)
    assert talk.up(payload=b"odd").reasons == {"forwarded": 1}
    talk.down(payload=b"longer answer")
    assert talk.up("A", b"more").reasons == {}
    talk.down("A", b"x" * 999)


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_choice_is_uniform(world: World, shape: Shape) -> None:
    """Chi-square over 6 backends and 3000 flows: 5 degrees of freedom, 40 is 1 in 10^7."""
    addresses = [
        (("10.2.0.%d" if shape.family == 4 else "fd00:2::%d") % n, 8000) for n in range(1, 7)
    ]
    service = world.add_service(SERVICE[shape.family], PORT, shape.protocol, addresses)
    first = Conversation(world, shape, service).request()
    frames = [model.rewrite(first, sport=port) for port in range(20000, 21500)]
    frames += [model.rewrite(f, src=addresses[0][0][:-1] + "77") for f in frames]
    seen = Counter(model.tuple_of(out).dst for _, out in world.run_many("entry_from_pod", frames))
    assert seen.keys() == {model.packed(ip) for ip, _ in addresses}
    expected = len(frames) / len(addresses)
    assert sum((n - expected) ** 2 / expected for n in seen.values()) < 40


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_one_backend_takes_all(world: World, shape: Shape) -> None:
    service = serve(world, shape, count=1)
    for port in range(30000, 30020):
        Conversation(world, shape, service, sport=port).up()
    assert len(world.flows(shape.family)) == 40


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_all_addresses_of_a_service_lead_to_it(world: World, shape: Shape) -> None:
    """One service port is one id, whatever address it is called by."""
    more = {4: "198.51.100.7", 6: "2001:db8::7"}[shape.family]
    backends = BACKENDS[shape.family]
    service = world.add_service([SERVICE[shape.family], more], PORT, shape.protocol, backends)
    for address in service.addresses:
        talk = Conversation(world, shape, service, sport=random.Random(1).randrange(1025, 60000))
        service.addresses = (address,)
        talk.open()
    assert world.service_counts(service)["connections"] == 2


@pytest.mark.parametrize("family", [4, 6])
def test_protocols_are_independent(world: World, family: int) -> None:
    """TCP, UDP and SCTP on one address and port are three services (rule 22)."""
    for number, protocol in enumerate(("tcp", "udp", "sctp")):
        port = PORT if protocol == "sctp" else 8080
        backend = (("10.3.0.%d" if family == 4 else "fd00:3::%d") % (number + 1), port)
        service = world.add_service(SERVICE[family], PORT, protocol, [backend])
        talk = Conversation(world, Shape(family, protocol), service)
        talk.up()
        assert talk.backend == backend


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_traffic_is_untouched(world: World, shape: Shape) -> None:
    """To the address of no service, and to a port of an address that only lends one port to us."""
    backends = BACKENDS[shape.family]
    external = {4: "198.51.100.7", 6: "2001:db8::7"}[shape.family]
    world.add_service(external, PORT, shape.protocol, backends, cluster_ip=False)
    for address, port in (("198.51.100.8", PORT), (external, 22)):
        to = address if shape.family == 4 or ":" in address else "2001:db8::8"
        frame = packets.frame(shape, CLIENT[shape.family], 40000, to, port, b"hello", flags="S")
        for outcome in (world.from_pod(frame), world.to_pod(frame)):
            assert (outcome.verdict, outcome.frame) == (model.PASS, frame)
    assert not world.flows()


@pytest.mark.parametrize("family", [4, 6])
def test_frames_that_are_not_ip_are_untouched(world: World, family: int) -> None:
    serve(world, Shape(family))
    for kind in (b"\x08\x06", b"\x86\xdd", b"\x08\x00", b"\x88\xcc", b"\x81\x00"):
        # A test run takes no IP frame without room for an IP header.
        for size in (40, 60, 1000):
            frame = bytes(12) + kind + bytes(range(80, 120)) * (size // 40)
            for outcome in (world.from_pod(frame), world.to_pod(frame)):
                assert (outcome.verdict, outcome.frame) == (model.PASS, frame)


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_internal_policy_local_uses_the_local_region(world: World, shape: Shape) -> None:
    everywhere, here = BACKENDS[shape.family], BACKENDS[shape.family][1:2]
    flags = world.flag("SERVICE_INTERNAL_LOCAL")
    service = world.add_service(
        SERVICE[shape.family], PORT, shape.protocol, everywhere, local=here, flags=flags
    )
    for port in range(30000, 30012):
        talk = Conversation(world, shape, service, sport=port)
        talk.up()
        assert talk.backend == here[0]


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_policy_local_with_nothing_here_drops(world: World, shape: Shape) -> None:
    flags = world.flag("SERVICE_INTERNAL_LOCAL")
    backends = BACKENDS[shape.family]
    service = world.add_service(
        SERVICE[shape.family], PORT, shape.protocol, backends, local=(), flags=flags, drop=True
    )
    outcome = world.from_pod(Conversation(world, shape, service).request())
    assert outcome.verdict == model.DROP
    assert outcome.reasons == {"no_local_endpoint": 1}
    assert not world.flows()


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_a_switch_of_sets_holds_for_every_later_flow(world: World, shape: Shape) -> None:
    backends = BACKENDS[shape.family]
    service = world.add_service(SERVICE[shape.family], PORT, shape.protocol, backends[:2])
    for number in range(20):
        world.set_backends(service, backends[2:] if number % 2 else backends[:2])
        talk = Conversation(world, shape, service, sport=50000 + number)
        talk.up()
        assert talk.backend in (backends[2:] if number % 2 else backends[:2])


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_connections_and_bytes_are_counted_for_the_service(world: World, shape: Shape) -> None:
    """Totals include what the flow carried, at the latest when it ends."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    talk.up("PA", b"x" * 100)
    talk.down("A", b"y" * 1000)
    talk.up("FA")
    talk.down("FA")
    talk.up("A")
    counts = world.service_counts(talk.service)
    assert counts["connections"] == 1
    assert (counts["packets_in"], counts["packets_out"]) == (5, 3)
    assert counts["bytes_in"] > 100
    assert counts["bytes_out"] > 1000


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_unallocated_address_in_the_service_range(world: World, shape: Shape) -> None:
    """Dropped (rule 26); passed on while kube-proxy may own it."""
    address = {4: "10.96.0.99", 6: "fd00:96::99"}[shape.family]
    frame = packets.frame(shape, CLIENT[shape.family], 40000, address, PORT, flags="S")
    outcome = world.from_pod(frame)
    assert (outcome.verdict, outcome.reasons) == (model.DROP, {"unallocated": 1})
    world.configure(flags=world.flag("CONFIG_PASS_MIDSTREAM"))
    assert world.from_pod(frame).verdict == model.PASS
