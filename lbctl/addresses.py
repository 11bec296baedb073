"""Addresses and prefixes as the kernel's maps hold them: 16 bytes, IPv4 as ::ffff:a.b.c.d."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import msgspec

IPV4 = 4
IPV6 = 6
FAMILIES = (IPV4, IPV6)

_MAPPED = bytes(10) + b"\xff\xff"
_MAPPED_BITS = 96
# First octets of IPv4 addresses that may be of special use.
_SPECIAL_FIRST = frozenset({0, 127, 169, 255, *range(224, 240)})


def parse_address(text: str) -> bytes:
    """The 16 bytes of an IPv4 or IPv6 address.

    Octets with leading zeros are decimal, as Kubernetes reads the old objects that still hold them
    (CVE-2021-29923 is about readers that disagree). Raises ValueError for anything else.
    """
    try:
        if ":" in text:
            return socket.inet_pton(socket.AF_INET6, text)
        return _MAPPED + socket.inet_pton(socket.AF_INET, text)
    except OSError:
        return _MAPPED + _parse_padded(text)
    except ValueError as error:  # a zero byte inside the text
        raise ValueError(f"{text!r} is not an IP address") from error


def _parse_padded(text: str) -> bytes:
    octets = text.split(".")
    if len(octets) == 4 and all(o.isascii() and o.isdigit() for o in octets):
        numbers = [int(o) for o in octets]
        if max(numbers) < 256:
            return bytes(numbers)
    raise ValueError(f"{text!r} is not an IP address")


def format_address(address: bytes) -> str:
    """The usual text of a 16-byte address."""
    if family_of(address) == IPV4:
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)


def format_endpoint(address: bytes, port: int) -> str:
    """`10.0.0.1:80` or `[fd00::1]:80`."""
    text = format_address(address)
    return f"[{text}]:{port}" if family_of(address) == IPV6 else f"{text}:{port}"


def family_of(address: bytes) -> int:
    """4 or 6."""
    return IPV4 if address.startswith(_MAPPED) else IPV6


def is_loopback(address: bytes) -> bool:
    """127.0.0.0/8 or ::1."""
    if family_of(address) == IPV4:
        return address[12] == 127
    return address == bytes(15) + b"\x01"


def loopback(family: int) -> bytes:
    """127.0.0.1 or ::1."""
    return parse_address("127.0.0.1" if family == IPV4 else "::1")


def is_link_local(address: bytes) -> bool:
    """fe80::/10: the same address may exist behind several interfaces."""
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def special_use(address: bytes) -> str:
    """What makes an address nobody's to serve or to be reached at: the word for its kind, empty for
    all others. An IPv4 address that was written as IPv6 is the same 16 bytes, and judged alike."""
    if address.startswith(_MAPPED):
        return _special4(address[12:]) if address[12] in _SPECIAL_FIRST else ""
    if address[0] == 0xFF:
        return "multicast"
    if is_link_local(address):
        return "link-local"
    if address[:15] == bytes(15):
        return {0: "unspecified", 1: "loopback"}.get(address[15], "")
    return ""


def is_plain(address: bytes, family: int) -> bool:
    """Whether it is of this family, and so far from all of special use that no more is to be asked:
    what is said of nearly every endpoint there is."""
    if address.startswith(_MAPPED):
        return family == IPV4 and address[12] not in _SPECIAL_FIRST
    return family == IPV6 and not special_use(address)


def _special4(address: bytes) -> str:
    first = address[0]
    if first == 127:
        return "loopback"
    if first == 0:
        return "unspecified"  # all of 0.0.0.0/8 means "this network" (RFC 1122, 3.2.1.3)
    if first == 169 and address[1] == 254:
        return "link-local"
    if 224 <= first < 240:
        return "multicast"
    return "broadcast" if address == b"\xff\xff\xff\xff" else ""


class Prefix(msgspec.Struct, frozen=True, gc=False, order=True):
    """A network: `address` with host bits cleared, `length` in bits of the 16-byte form (a /24 of
    IPv4 has 120)."""

    address: bytes
    length: int

    @property
    def family(self) -> int:
        return IPV4 if self.length >= _MAPPED_BITS and family_of(self.address) == IPV4 else IPV6

    @property
    def is_everything(self) -> bool:
        """A /0 of its family."""
        return self.length == (_MAPPED_BITS if self.family == IPV4 else 0)

    def __contains__(self, address: bytes) -> bool:
        if family_of(address) != self.family:
            return False
        shift = 128 - self.length
        return (
            int.from_bytes(address, "big") >> shift == int.from_bytes(self.address, "big") >> shift
        )

    def __str__(self) -> str:
        bits = self.length - (_MAPPED_BITS if self.family == IPV4 else 0)
        return f"{format_address(self.address)}/{bits}"


def parse_prefix(text: str) -> Prefix:
    """A network in CIDR notation, blanks around it ignored. Raises ValueError."""
    host, slash, bits = text.strip().partition("/")
    if not slash or not (bits.isascii() and bits.isdigit()):
        raise ValueError(f"{text!r} is not a network in CIDR notation, like 10.0.0.0/8")
    address = parse_address(host)
    ipv6 = ":" in host
    length = int(bits) + (0 if ipv6 else _MAPPED_BITS)
    if length > 128:
        raise ValueError(f"{text!r} has a prefix longer than {128 if ipv6 else 32} bits")
    shift = 128 - length
    network = int.from_bytes(address, "big") >> shift << shift
    return Prefix(network.to_bytes(16, "big"), length)


def host_prefix(address: bytes) -> Prefix:
    """The network that holds this address alone."""
    return Prefix(address, 128)


def of_family(prefixes: Iterable[Prefix], family: int) -> tuple[Prefix, ...]:
    """Those of one family, in their order."""
    return tuple(p for p in prefixes if p.family == family)
