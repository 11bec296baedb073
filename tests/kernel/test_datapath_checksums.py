"""Checksums at the edges: every size of payload, and sums that are 0 or 0xffff.

Every other test compares whole frames, sums included, with the model and checks them with scapy.
"""

import pytest

from ebpf.kernel.testrun import CHECKSUM_COMPLETE
from tests.kernel.support import model
from tests.kernel.support.conversation import Conversation, serve
from tests.kernel.support.packets import PLAIN, SHAPES, Shape
from tests.kernel.support.world import World

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("flags", [0, CHECKSUM_COMPLETE], ids=["plain", "complete"])
@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_payloads_of_every_size(world: World, shape: Shape, flags: int) -> None:
    """Odd, even, empty, all zero bits, all one bits, and as large as a frame gets here."""
    talk = Conversation(world, shape, serve(world, shape), flags=flags).open()
    for size in (0, 1, 2, 3, 17, 536, 1399, 1400, 3000):
        for byte in (b"\0", b"\xff", b"a"):
            talk.up("A", byte * size)
            talk.down("PA", byte * size)
    assert len(world.flows(shape.family)) == 2


@pytest.mark.parametrize(
    "shape", [s for s in SHAPES if s.protocol != "sctp" and not s.zero], ids=str
)
def test_sums_at_the_edge_of_their_range(world: World, shape: Shape) -> None:
    """Sums that become 0 or 0xffff on either side of the translation: 0 is special for UDP.

    SCTP has no part in this: its CRC covers no address.
    """
    talk = Conversation(world, shape, serve(world, shape, count=1)).open()
    for target in (0x0000, 0x0001, 0xFFFE, 0xFFFF):
        talk.up("A", _payload_for(talk.request("A", b"\0\0"), target))
        talk.down("A", _payload_for(talk.reply("A", b"\0\0"), target))


def _payload_for(frame: bytes, target: int) -> bytes:
    """Two bytes that, in place of two zero ones, give the frame this transport checksum."""
    layout = model.parse(frame)
    at = layout.transport + model.CHECKSUM_AT[layout.protocol]
    have = int.from_bytes(frame[at : at + 2], "big")
    return ((have - target) % 0xFFFF).to_bytes(2, "big")


def test_payload_for_reaches_the_edge() -> None:
    """The helper above does what it says, or the test above would test nothing."""
    frame = bytes(12) + b"\x08\x00" + bytes.fromhex("4500001e000000004011 0000 0a000001 0a000002")
    frame += bytes.fromhex("1111 2222 000a 0000 0000")
    frame = model.rewrite(frame[:40] + b"\1\1" + frame[42:])
    patched = model.rewrite(frame[:-2] + _payload_for(frame, 0xFFFF))
    assert patched[40:42] == b"\xff\xff"
