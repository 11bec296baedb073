"""The life of a TCP flow: states, timeouts, endings, and what a SYN finds of an earlier life."""

from collections.abc import Callable

import pytest

from tests.kernel.support import model
from tests.kernel.support.conversation import SECOND, Conversation, serve
from tests.kernel.support.packets import TCP_SHAPES, Shape
from tests.kernel.support.world import TIMEOUTS, World

pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)]


def test_states_of_a_life(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape))
    talk.up("S")
    assert talk.state == "syn"
    talk.down("SA")
    assert talk.state == "syn"
    talk.up("A")
    assert talk.state == "established"
    talk.up("PA", b"request")
    talk.down("PA", b"answer")
    talk.up("FA")
    assert talk.state == "fin_wait"
    talk.down("A")
    assert talk.state == "closing"
    talk.down("PA", b"more of the answer")
    talk.up("A")
    assert talk.state == "closing"
    talk.down("FA")
    assert talk.state == "fin_wait"
    talk.up("A")
    assert talk.state == "time_wait"


def test_numbers_that_wrap(world: World, shape: Shape) -> None:
    """Sequence numbers pass 2^32 in both directions between the FINs and their ACKs."""
    for start in (0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF, 0x7FFFFFFF):
        for close in (Conversation.close_from_client, Conversation.close_from_backend):
            first = start - 1  # the SYNs'
            talk = Conversation(world, shape, serve(world, shape), seq=first, peer_seq=first)
            talk.open()
            close(talk)
            assert talk.state == "time_wait"
            world.reset()


def test_backend_closes_first_and_its_tuple_rests(world: World, shape: Shape) -> None:
    """The flow stays as it is: the backend's kernel holds the tuple in TIME_WAIT."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    talk.close_from_backend()
    world.sweep()
    assert {(f.state, f.reply) for f in talk.entries()} == {
        ("time_wait", True),
        ("time_wait", False),
    }


def test_the_same_service_can_be_called_again_at_once(world: World, shape: Shape) -> None:
    """From the same port, to the same and only backend, unchanged."""
    talk = Conversation(world, shape, serve(world, shape, count=1)).open()
    for _ in range(3):
        talk.close_from_backend()
        talk.forget()
        talk.seq += 100000
        outcome = talk.up("S")
        assert outcome.reasons == {"forwarded": 1}
        assert talk.seen_port == talk.sport
        talk.down("SA")
        talk.up("A")
        assert talk.state == "established"


def test_another_service_gets_another_port_while_the_tuple_rests(
    world: World, shape: Shape
) -> None:
    talk = Conversation(world, shape, serve(world, shape, count=1)).open()
    talk.close_from_backend()
    other = serve(world, shape, count=1, address=SECOND[shape.family])
    second = Conversation(world, shape, other)
    assert second.up("S").reasons == {"forwarded": 1, "source_translated": 1}
    assert second.seen_port != second.sport
    second.down("SA")
    second.up("A")
    second.close_from_client()


def test_another_service_gets_the_port_when_the_rest_is_over(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape, count=1)).open()
    talk.close_from_backend()
    world.age(TIMEOUTS["time_wait_timeout"] + 2)
    other = serve(world, shape, count=1, address=SECOND[shape.family])
    second = Conversation(world, shape, other)
    assert second.up("S").reasons == {"forwarded": 1}
    assert second.seen_port == second.sport
    assert "syn" in {f.state for f in talk.entries()}


def test_data_sent_again_between_the_fins_ends_nothing(world: World, shape: Shape) -> None:
    """Only an acknowledgement of the FIN's own number counts, not any packet after it."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    data_at, fin_at = talk.peer_seq, talk.peer_seq + 6
    talk.down("PA", b"answer")
    talk.down("FA")
    for _ in range(3):
        talk.up("A", ack=data_at)
    talk.up("FA", ack=data_at)
    client_fin = talk.seq - 1
    for _ in range(3):
        talk.down("PA", b"answer", seq=data_at, ack=client_fin)
        talk.up("A", ack=fin_at)
    assert talk.state == "fin_wait"
    talk.down("FA", seq=fin_at, ack=client_fin)
    talk.down("A", seq=fin_at + 1, ack=talk.seq)
    talk.up("A", ack=fin_at)
    assert talk.state == "fin_wait"
    talk.up("A", ack=fin_at + 1)
    assert talk.state == "time_wait"


def test_a_fin_with_data_counts_the_data(world: World, shape: Shape) -> None:
    """The FIN's number lies behind the segment's payload."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    talk.up("FPA", b"last words")
    talk.down("A", ack=talk.seq - 1)
    talk.down("FPA", b"and mine", ack=talk.seq - 1)
    talk.up("A", ack=talk.peer_seq - 1)
    assert talk.state == "fin_wait"
    talk.up("A")
    talk.down("A")
    assert talk.state == "time_wait"


def test_both_close_at_once(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    fin, peer_fin = talk.seq, talk.peer_seq
    talk.up("FA")
    talk.down("FA", ack=fin)
    talk.up("A", seq=fin + 1, ack=peer_fin + 1)
    assert talk.state == "fin_wait"
    talk.down("A", seq=peer_fin + 1, ack=fin + 1)
    assert talk.state == "time_wait"


def test_a_syn_sent_again_keeps_its_backend(world: World, shape: Shape) -> None:
    """Also after the SYN-ACK, and each counts as no new connection."""
    talk = Conversation(world, shape, serve(world, shape))
    talk.up("S", seq=77)
    for _ in range(10):
        assert talk.up("S", seq=77).reasons == {}
    talk.down("SA")
    for _ in range(10):
        talk.up("S", seq=77)
    assert len(world.flows()) == 2
    assert world.service_counts(talk.service)["connections"] == 1


Ending = Callable[[Conversation], object]
ENDINGS: dict[str, Ending] = {
    "reset by client": lambda talk: talk.up("R"),
    "reset by backend": lambda talk: talk.down("RA"),
    "both FINs, not acknowledged": lambda talk: (talk.up("FA"), talk.down("FA", ack=1)),
    "idle in handshake": lambda talk: talk.world.age(TIMEOUTS["syn_timeout"] + 2),
    "idle when established": lambda talk: talk.world.age(TIMEOUTS["established_timeout"] + 2),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_syn_on_a_finished_flow_begins_anew(world: World, shape: Shape, ending: str) -> None:
    """Another backend by chance in time, nothing left of the old flow."""
    backends = set()
    service = serve(world, shape)
    for number in range(40):
        talk = Conversation(world, shape, service, seq=1000 + number * 100000)
        talk.up("S")
        if ending != "idle in handshake":
            talk.down("SA")
            talk.up("A")
        ENDINGS[ending](talk)
        backends.add(talk.backend)
        assert len(world.flows()) == 2
        # Of FINs that crossed, the backend's tuple rests too: one for each backend.
        assert world.noted() <= (2 if "FINs" in ending else 0)
    assert len(backends) == 3
    assert world.service_counts(service)["connections"] == 40


@pytest.mark.parametrize(
    ("state", "timeout"), [("syn", "syn_timeout"), ("established", "established_timeout")]
)
def test_not_idle_long_enough(world: World, shape: Shape, state: str, timeout: str) -> None:
    """A little less than the timeout, and the SYN still follows its flow."""
    talk = Conversation(world, shape, serve(world, shape))
    talk.up("S")
    if state == "established":
        talk.down("SA")
        talk.up("A")
    world.age(TIMEOUTS[timeout] - 60)
    for _ in range(10):
        assert talk.up("S", seq=1000).reasons == {}


def test_data_on_an_idle_flow_still_follows_it(world: World, shape: Shape) -> None:
    """Only a SYN begins anew: a connection that slept is not reset."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    world.age(TIMEOUTS["established_timeout"] + 100)
    talk.up("PA", b"good morning")
    talk.down("A")
    assert talk.state == "established"


def test_a_last_packet_that_was_lost_is_sent_again(world: World, shape: Shape) -> None:
    """The backend repeats its FIN, and the client its answer: the flow is still there for them."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    talk.close_from_client()
    for _ in range(3):
        talk.down("FA", seq=talk.peer_seq - 1)
        talk.up("A")
        assert talk.state == "time_wait"


@pytest.mark.parametrize("ending", ["closed", "reset by client", "reset by backend"])
def test_another_service_gets_another_port_just_after_the_end(
    world: World, shape: Shape, ending: str
) -> None:
    """The two last packets and the first of the new connection may be on different CPUs: the SYN
    may reach the backend first, whose kernel would not take it for a new connection."""
    talk = Conversation(world, shape, serve(world, shape, count=1)).open()
    if ending == "closed":
        talk.close_from_client()
    else:
        ENDINGS[ending](talk)
    second = Conversation(world, shape, serve(world, shape, 1, SECOND[shape.family]))
    assert second.up("S").reasons == {"forwarded": 1, "source_translated": 1}
    third = Conversation(world, shape, talk.service, seq=talk.seq + 100000)
    assert third.up("S").reasons == {"forwarded": 1}
    assert third.seen_port == third.sport
    for new in (second, third):
        new.down("SA")
        new.up("A", b"x")
        new.down("A", b"y")


def test_both_close_at_once_and_the_tuple_rests(world: World, shape: Shape) -> None:
    """Neither FIN acknowledges the other: both kernels hold the tuple in TIME_WAIT."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    fin, peer_fin = talk.seq, talk.peer_seq
    talk.up("FA")
    talk.down("FA", ack=fin)
    talk.up("A", seq=fin + 1, ack=peer_fin + 1)
    talk.down("A", seq=peer_fin + 1, ack=fin + 1)
    world.sweep()
    assert {(f.state, f.reply) for f in talk.entries()} == {
        ("time_wait", True),
        ("time_wait", False),
    }


def test_a_reset_does_not_end_the_rest(world: World, shape: Shape) -> None:
    """The backend's kernel ignores most resets in TIME_WAIT, and a client's may be a stray."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    talk.close_from_backend()
    talk.up("R")
    talk.down("R")
    assert {flow.state for flow in world.flows()} == {"time_wait"}


def test_midstream_without_flow_is_reset(world: World, shape: Shape) -> None:
    service = serve(world, shape)
    for flags in ("A", "PA", "FA", "SA", "F", "", "SR", "RA", "R"):
        outcome = world.from_pod(Conversation(world, shape, service).request(flags, b"data"))
        assert not world.flows()
        reset_itself = "R" in flags
        assert outcome.verdict == (model.DROP if reset_itself else model.REDIRECT), flags
        assert outcome.reasons == {"no_flow_reset": 1}


def test_midstream_without_flow_is_passed_while_kube_proxy_may_own_it(
    world: World, shape: Shape
) -> None:
    service = serve(world, shape)
    world.configure(flags=world.flag("CONFIG_PASS_MIDSTREAM"))
    for flags in ("A", "PA", "FA", "SA", "RA", "R"):
        frame = Conversation(world, shape, service).request(flags, b"data")
        outcome = world.from_pod(frame)
        assert (outcome.verdict, outcome.frame) == (model.PASS, frame)
        assert outcome.reasons == {"no_flow_passed": 1}
    assert not world.flows()
    Conversation(world, shape, service).open().close_from_client()


def test_after_the_end_nothing_is_translated(world: World, shape: Shape) -> None:
    """A straggler from the backend passes as it is; one from the client is reset."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    talk.close_from_client()
    world.sweep()
    assert talk.entries() == []
    late = talk.reply("A", b"late")
    assert world.to_pod(late).frame == late
    assert world.from_pod(talk.request("A", b"late")).reasons == {"no_flow_reset": 1}


def test_a_port_used_by_many_connections_in_turn(world: World, shape: Shape) -> None:
    """Fifty lives of one tuple, ended every way; the tables do not grow."""
    service = serve(world, shape)
    endings = [
        Conversation.close_from_client,
        Conversation.close_from_backend,
        *ENDINGS.values(),
    ]
    for number in range(49):
        talk = Conversation(world, shape, service, seq=1 + number * 70000).open()
        endings[number % len(endings)](talk)
        assert len(world.flows()) <= 4
