"""One client talking to a service through the world, every packet compared with the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.kernel.support import checks, model, packets
from tests.kernel.support.flows import Flow
from tests.kernel.support.packets import Shape
from tests.kernel.support.world import Endpoint, Outcome, Service, World

CLIENT = {4: "10.1.0.2", 6: "fd00:1::2"}
BACKENDS: dict[int, list[Endpoint]] = {
    4: [("10.1.1.1", 8080), ("10.1.1.2", 8080), ("10.1.1.3", 9090)],
    6: [("fd00:1:1::1", 8080), ("fd00:1:1::2", 8080), ("fd00:1:1::3", 9090)],
}
SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}
SECOND = {4: "10.96.0.11", 6: "fd00:96::11"}
PORT = 80


def serve(
    world: World, shape: Shape, count: int = 3, address: str | None = None, port: int = PORT
) -> Service:
    """A service of the shape's family and protocol with the first `count` backends.

    SCTP keeps its ports here, so that they and the CRC stay; test_datapath_uplink changes them.
    """
    chosen = BACKENDS[shape.family][:count]
    if shape.protocol == "sctp":
        chosen = [(ip, port) for ip, _ in chosen]
    return world.add_service(address or SERVICE[shape.family], port, shape.protocol, chosen)


@dataclass
class Conversation:
    """`up` sends to the service, `down` answers from the backend that was chosen.

    The backend and the client's port as the backend sees it are learned from the first packet; each
    packet after that must come out as the model predicts from them, with right checksums.
    `seq` and `ack` are the client's; the backend's are their mirror image.
    """

    world: World
    shape: Shape
    service: Service
    sport: int = 40000
    client: str = ""
    backend: Endpoint | None = None
    seen_port: int = 0
    seq: int = 1000
    peer_seq: int = 500000
    flags: int = 0

    def __post_init__(self) -> None:
        self.client = self.client or CLIENT[self.shape.family]

    @property
    def address(self) -> str:
        return self.service.address(self.shape.family)

    def request(self, flags: str = "S", payload: bytes = b"", **tcp: int) -> bytes:
        """The frame that the client would send next."""
        fields: dict[str, Any] = {
            "seq": self.seq,
            "ack": self.peer_seq if "A" in flags else 0,
            **tcp,
        }
        return packets.frame(
            self.shape,
            self.client,
            self.sport,
            self.address,
            self.service.port,
            payload,
            flags=flags,
            **fields,
        )

    def reply(self, flags: str = "SA", payload: bytes = b"", **tcp: int) -> bytes:
        """The frame that the backend would send next."""
        assert self.backend is not None
        fields: dict[str, Any] = {
            "seq": self.peer_seq,
            "ack": self.seq if "A" in flags else 0,
            **tcp,
        }
        return packets.frame(
            self.shape, *self.backend, self.client, self.seen_port, payload, flags=flags, **fields
        )

    def up(self, flags: str = "S", payload: bytes = b"", **tcp: int) -> Outcome:
        """Client to service; must reach the backend."""
        frame = self.request(flags, payload, **tcp)
        outcome = self.world.from_pod(frame, self.flags)
        assert outcome.verdict == model.PASS, outcome
        if self.backend is None:
            self.learn(outcome)
        assert self.backend is not None
        address, port = self.backend
        expected = model.rewrite(frame, dst=address, dport=port, sport=self.seen_port)
        assert outcome.frame == expected
        checks.assert_sums(outcome.frame)
        if "seq" not in tcp:
            self.seq = (self.seq + len(payload) + ("S" in flags) + ("F" in flags)) % (1 << 32)
        return outcome

    def down(self, flags: str = "SA", payload: bytes = b"", **tcp: int) -> Outcome:
        """Backend to client; must look as if the service had answered."""
        frame = self.reply(flags, payload, **tcp)
        outcome = self.world.to_pod(frame, self.flags)
        assert outcome.verdict == model.PASS, outcome
        expected = model.rewrite(frame, src=self.address, sport=self.service.port, dport=self.sport)
        assert outcome.frame == expected
        checks.assert_sums(outcome.frame)
        if "seq" not in tcp:
            self.peer_seq += len(payload) + ("S" in flags) + ("F" in flags)
            self.peer_seq %= 1 << 32
        return outcome

    def forget(self) -> None:
        """The next `up` may reach any backend, from any port."""
        self.backend, self.seen_port = None, 0

    def open(self) -> Conversation:
        """Through the handshake; for datagrams one request and one answer."""
        if self.shape.protocol == "tcp":
            self.up("S")
            self.down("SA")
            self.up("A")
        else:
            self.up(payload=b"request")
            self.down(payload=b"answer")
        return self

    def learn(self, outcome: Outcome) -> None:
        """Which backend a forwarded frame went to, and from which port; it must be one of ours."""
        out = model.tuple_of(outcome.frame)
        found = [
            (address, port)
            for address, port in self.service.endpoints(self.shape.family)
            if model.packed(address) == out.dst and port == out.dport
        ]
        assert found, f"reached {out.dst.hex()}:{out.dport}, which is no backend"
        self.backend, self.seen_port = found[0], out.sport

    def close_from_client(self) -> None:
        """FINs and their acknowledgements, the client's first."""
        self.up("FA")
        self.down("A")
        self.down("FA")
        self.up("A")

    def close_from_backend(self) -> None:
        """FINs and their acknowledgements, the backend's first: it keeps the tuple in TIME_WAIT."""
        self.down("FA")
        self.up("A")
        self.up("FA")
        self.down("A")

    def entries(self) -> list[Flow]:
        """The flow's entries, and others of its client's port."""
        flows = self.world.flows(self.shape.family)
        return [flow for flow in flows if self.sport in (flow.sport, flow.dport)]

    @property
    def state(self) -> str:
        """The flow's state, which the forward entry has (the reply entry may learn it later); that
        of the reply entry if it is alone, and "gone" if there is none."""
        entries = self.world.flows(self.shape.family)
        found = [f.state for f in sorted(entries, key=lambda f: f.reply) if f.state != "side"]
        return found[0] if found else "gone"
