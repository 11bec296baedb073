"""A pod that talks to itself through a service, every packet through both hooks."""

from __future__ import annotations

from dataclasses import dataclass

from tests.kernel.support import checks, model
from tests.kernel.support.conversation import CLIENT, PORT, SERVICE, Conversation
from tests.kernel.support.packets import Shape
from tests.kernel.support.world import NODE, PORT_MAX, PORT_MIN, Outcome, Service, World

TARGET = 8080


@dataclass
class Loop:
    """Both ends in one pod. Every packet passes the hook from the pod and then the one to it; each
    of the four translations is compared with the model."""

    talk: Conversation
    node: str
    flags: int = 0
    port: int = 0  # the source port that the pod sees

    @classmethod
    def start(
        cls,
        world: World,
        shape: Shape,
        address: str | None = None,
        sport: int = 40000,
        flags: int = 0,
    ) -> Loop:
        """With a service of its own."""
        talk = Conversation(world, shape, own_service(world, shape, address), sport)
        return cls(talk, NODE[shape.family], flags)

    @property
    def pod(self) -> str:
        return self.talk.client

    def request(self, flags: str = "S", payload: bytes = b"") -> Outcome:
        """pod:cp → service becomes pod:np → pod at the first hook, node:np → pod at the second."""
        frame = self.talk.request(flags, payload)
        first = self.talk.world.from_pod(frame, self.flags)
        assert first.verdict == model.PASS, first
        self.port = self.port or model.tuple_of(first.frame).sport
        assert PORT_MIN <= self.port <= PORT_MAX
        same(first, model.rewrite(frame, dst=self.pod, dport=TARGET, sport=self.port))
        second = self.talk.world.to_pod(first.frame, self.flags)
        same(second, model.rewrite(first.frame, src=self.node))
        self.talk.seq += len(payload) + ("S" in flags) + ("F" in flags)
        return first

    def answer(self, flags: str = "SA", payload: bytes = b"") -> None:
        """pod → node:np becomes pod → pod:np at the first hook, service → pod:cp at the second."""
        self.talk.backend, self.talk.seen_port = (self.pod, TARGET), self.port
        frame = model.rewrite(self.talk.reply(flags, payload), dst=self.node)
        first = self.talk.world.from_pod(frame, self.flags)
        same(first, model.rewrite(frame, dst=self.pod))
        second = self.talk.world.to_pod(first.frame, self.flags)
        service = self.talk.address
        expected = model.rewrite(first.frame, src=service, sport=PORT, dport=self.talk.sport)
        same(second, expected)
        self.talk.peer_seq += len(payload) + ("S" in flags) + ("F" in flags)


def same(outcome: Outcome, expected: bytes) -> None:
    assert (outcome.verdict, outcome.frame) == (model.PASS, expected)
    checks.assert_sums(outcome.frame)


def own_service(world: World, shape: Shape, address: str | None = None) -> Service:
    """A service whose only endpoint is the client."""
    backend = (CLIENT[shape.family], TARGET)
    return world.add_service(address or SERVICE[shape.family], PORT, shape.protocol, [backend])
