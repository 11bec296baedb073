"""Packets of flows that exist: they follow their flow, whatever becomes of everything else."""

import pytest

from tests.kernel.support import model
from tests.kernel.support.conversation import PORT, SERVICE, Conversation, serve
from tests.kernel.support.packets import PLAIN, TCP_SHAPES, UDP_SHAPES, Shape
from tests.kernel.support.world import World, beat

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_survives_the_removal_of_its_endpoint(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    assert talk.backend
    others = [e for e in talk.service.backends if e != talk.backend]
    world.set_backends(talk.service, others)
    _still_talks(talk)


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_survives_the_loss_of_all_endpoints(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    world.set_backends(talk.service, [])
    _still_talks(talk)


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_survives_the_removal_of_its_port(world: World, shape: Shape) -> None:
    """The address stays a live ClusterIP that refuses this port from now on, to others."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    world.remove_frontend(SERVICE[shape.family], PORT, talk.service.protocol)
    _still_talks(talk)
    other = Conversation(world, shape, talk.service, sport=40001)
    assert world.from_pod(other.request("S")).reasons == {"unknown_port": 1}


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_survives_the_removal_of_its_service(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    world.remove_service(talk.service)
    _still_talks(talk)
    other = Conversation(world, shape, talk.service, sport=40001)
    assert world.from_pod(other.request("S")).reasons == {"unallocated": 1}


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_survives_the_reuse_of_its_backend_id(world: World, shape: Shape) -> None:
    """An established flow stores its address; what the id means by now is nothing to it."""
    service = serve(world, shape, count=1)
    talk = Conversation(world, shape, service).open()
    assert talk.backend
    address = {4: "10.9.9.9", 6: "fd00:9::9"}[shape.family]
    world.reuse_backend_id(service, talk.backend, (address, 1))
    service.backends[talk.backend] = 0
    _still_talks(talk)


def _still_talks(talk: Conversation) -> None:
    talk.up("PA", b"request")
    talk.down("PA", b"answer")
    talk.close_from_client()
    assert talk.state == "time_wait"


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_both_directions_keep_a_flow_alive(world: World, shape: Shape) -> None:
    """`seen` follows the clock in the entry of the direction that the packet took. Python's reading
    of that clock is a tenth of a second off, which may be the next beat."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    world.age(100)
    before = beat() - 1
    talk.down("A", b"x")
    seen = {flow.reply: flow.seen for flow in world.flows()}
    assert before <= seen[True] <= beat() + 1
    talk.up("A", b"x")
    assert all(before <= flow.seen <= beat() + 1 for flow in world.flows())


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_replies_are_only_translated_for_their_own_tuple(world: World, shape: Shape) -> None:
    """Another port of the backend, or of the client, is another conversation."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    assert talk.backend
    reply = talk.reply("A", b"x")
    strangers = [
        model.rewrite(reply, sport=talk.backend[1] + 1),
        model.rewrite(reply, dport=talk.sport + 1),
        model.rewrite(reply, src=talk.client),
        model.rewrite(reply, dst=talk.backend[0]),
    ]
    for frame in strangers:
        outcome = world.to_pod(frame)
        assert (outcome.verdict, outcome.frame) == (model.PASS, frame)


@pytest.mark.parametrize("shape", [*TCP_SHAPES, *UDP_SHAPES], ids=str)
def test_a_reply_to_a_client_that_is_a_service_itself(world: World, shape: Shape) -> None:
    """A service has the client's address and port: the reply comes in by the uplink untouched, and
    becomes the service's where it goes out to the pod."""
    talk = Conversation(world, shape, serve(world, shape))
    world.add_service(talk.client, talk.sport, shape.protocol, cluster_ip=False)
    world.mark_endpoint((talk.client, talk.sport))
    talk.up("S" if shape.protocol == "tcp" else "")
    reply = talk.reply("SA" if shape.protocol == "tcp" else "")
    outcome = world.from_net(reply)
    assert (outcome.verdict, outcome.frame) == (model.PASS, reply)
    talk.down("SA" if shape.protocol == "tcp" else "")
