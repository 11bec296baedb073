"""Frames of a trace, judged by a parser that is not ours."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit

from lbctl.addresses import IPV4, IPV6, parse_address
from lbctl.model.records import Protocol
from lbctl.trace.packets import Ends, checksum, crc32c, frame, read_ends

FOUR = Ends(parse_address("10.0.0.2"), 40000, parse_address("172.30.0.41"), 80)
SIX = Ends(parse_address("fd00:1::2"), 40000, parse_address("fd00:30::41"), 80)
LAYERS = {Protocol.TCP: TCP, Protocol.UDP: UDP, Protocol.SCTP: SCTP}


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("ends", [FOUR, SIX], ids=["v4", "v6"])
def test_frames_are_what_another_parser_makes_of_them(ends: Ends, protocol: Protocol) -> None:
    raw = frame(ends, protocol)
    parsed = Ether(raw)
    network = IP if ends is FOUR else IPv6
    transport = LAYERS[protocol]
    assert parsed[network].src == ("10.0.0.2" if ends is FOUR else "fd00:1::2")
    assert (parsed[transport].sport, parsed[transport].dport) == (40000, 80)
    # Rebuilt with its lengths and checksums computed anew, it is the same.
    for layer, fields in (
        (network, ("len", "plen", "chksum", "ihl")),
        (transport, ("len", "chksum", "dataofs")),
    ):
        for field in fields:
            parsed[layer].fields.pop(field, None)
    assert bytes(parsed) == raw


def test_they_begin_connections() -> None:
    assert Ether(frame(FOUR, Protocol.TCP))[TCP].flags == "S"
    assert SCTPChunkInit in Ether(frame(FOUR, Protocol.SCTP))
    assert len(Ether(frame(SIX, Protocol.UDP))[UDP].payload) > 0


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(("ends", "family"), [(FOUR, IPV4), (SIX, IPV6)])
def test_ends_are_read_back(ends: Ends, family: int, protocol: Protocol) -> None:
    assert read_ends(frame(ends, protocol), family) == ends


def test_a_udp_checksum_is_never_zero() -> None:
    """Zero would say that there is none (RFC 768), and over IPv6 is not allowed (RFC 8200)."""
    found = set()
    for port in range(65536):
        ends = Ends(SIX.source, port, SIX.destination, 53)
        raw = frame(ends, Protocol.UDP)
        found.add(raw[60:62])
        if raw[60:62] == b"\xff\xff":
            break
    assert b"\xff\xff" in found
    assert b"\0\0" not in found


def test_known_sums() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D  # RFC 1071, section 3
    assert checksum(b"\x01") == 0xFEFF
