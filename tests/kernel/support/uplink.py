"""A client outside and a backend on another node, with every packet through this node's uplink."""

from __future__ import annotations

from dataclasses import dataclass

from tests.kernel.support import checks, model, packets
from tests.kernel.support.packets import Shape
from tests.kernel.support.world import NODE, PORT_MAX, PORT_MIN, Endpoint, Outcome, Service, World

# In a frame without link header, these addresses say by chance which protocol it is: see world.py.
OUTSIDE = {4: "8.0.0.9", 6: "2001:db8:86dd::9"}
REMOTE: dict[int, Endpoint] = {4: ("8.0.1.1", 8080), 6: ("2001:db8:86dd::1:1", 8080)}
NODE_PORT = 30080
LINK = 14


def node_port(world: World, shape: Shape) -> Service:
    """On the node's own address, to the remote backend."""
    address, backend = NODE[shape.family], REMOTE[shape.family]
    return world.add_service(address, NODE_PORT, shape.protocol, [backend], cluster_ip=False)


@dataclass
class Passage:
    """Each packet passes the uplink twice; both translations are compared with the model."""

    world: World
    shape: Shape
    sport: int = 40000
    flags: int = 0
    bare: bool = False  # an uplink without link header
    address: str = ""  # the client's
    port: int = 0  # the node's, as the backend sees it
    seq: int = 1000
    peer_seq: int = 500000

    @property
    def node(self) -> str:
        return NODE[self.shape.family]

    @property
    def seen(self) -> str:
        """The node's address that the backend sees."""
        return self.node

    @property
    def backend(self) -> Endpoint:
        return REMOTE[self.shape.family]

    @property
    def client(self) -> str:
        return self.address or OUTSIDE[self.shape.family]

    def request(self, flags: str = "S", payload: bytes = b"") -> bytes:
        place = (self.client, self.sport, self.node, NODE_PORT)
        ack = self.peer_seq if "A" in flags else 0
        return packets.frame(self.shape, *place, payload, flags=flags, seq=self.seq, ack=ack)

    def reply(self, flags: str = "SA", payload: bytes = b"") -> bytes:
        place = (*self.backend, self.seen, self.port)
        return packets.frame(
            self.shape, *place, payload, flags=flags, seq=self.peer_seq, ack=self.seq
        )

    def up(self, flags: str = "S", payload: bytes = b"") -> tuple[bytes, bytes]:
        """Client to backend: the frame after each hook."""
        frame = self.request(flags, payload)
        first = self.come_in(frame)
        self.port = self.port or model.tuple_of(first).sport
        assert self.port == self.sport or PORT_MIN <= self.port <= PORT_MAX
        address, port = self.backend
        assert first == model.rewrite(frame, dst=address, dport=port, sport=self.port)
        second = self.go_out(first)
        assert second == model.rewrite(first, src=self.seen)
        self.seq += len(payload) + ("S" in flags) + ("F" in flags)
        return first, second

    def down(self, flags: str = "SA", payload: bytes = b"") -> tuple[bytes, bytes]:
        """Backend to client: the frame after each hook."""
        frame = self.reply(flags, payload)
        first = self.come_in(frame)
        assert first == model.rewrite(frame, dst=self.client)
        second = self.go_out(first)
        assert second == model.rewrite(first, src=self.node, sport=NODE_PORT, dport=self.sport)
        self.peer_seq += len(payload) + ("S" in flags) + ("F" in flags)
        return first, second

    def open(self) -> None:
        self.up("S")
        self.down("SA")
        self.up("A")

    def close(self, first: str) -> None:
        """FINs and their acknowledgements; the "client" or the "server" begins."""
        steps = [(self.up, "FA"), (self.down, "A"), (self.down, "FA"), (self.up, "A")]
        if first == "server":
            steps = [(self.down, "FA"), (self.up, "A"), (self.up, "FA"), (self.down, "A")]
        for send, flags in steps:
            send(flags)

    def come_in(self, frame: bytes) -> bytes:
        hook = self.world.from_tunnel if self.bare else self.world.from_net
        return self._passed(hook(frame[LINK * self.bare :], self.flags), frame)

    def go_out(self, frame: bytes) -> bytes:
        hook = self.world.to_tunnel if self.bare else self.world.to_net
        return self._passed(hook(frame[LINK * self.bare :], self.flags), frame)

    def _passed(self, outcome: Outcome, frame: bytes) -> bytes:
        assert outcome.verdict == model.PASS, outcome
        out = frame[: LINK * self.bare] + outcome.frame
        checks.assert_sums(out)
        return out
