"""As much of the DNS message format (RFC 1035) as a test needs: one question, one answer."""

from __future__ import annotations

import socket
import struct

A, TXT, AAAA = 1, 16, 28
_IN = 1
_HEADER = struct.Struct("!HHHHHH")
_QUERY = 0x0100  # recursion desired
_RESPONSE = 0x8580  # response, authoritative, recursion desired and available
_NAME_OF_QUESTION = 0xC00C  # compression pointer to the first question


def query(ident: int, name: str, kind: int = TXT) -> bytes:
    """A query for `name`; `ident` (16 bits) comes back in the answer."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    question = labels + b"\0" + struct.pack("!HH", kind, _IN)
    return _HEADER.pack(ident, _QUERY, 1, 0, 0, 0) + question


def answer(request: bytes, identity: str, address: str) -> bytes | None:
    """The response of a server called `identity` at `address`; None if this is no DNS query.

    TXT asks for the identity, A and AAAA for the address; other types get no records.
    """
    if len(request) < _HEADER.size or _HEADER.unpack_from(request)[2] != 1:
        return None
    end = _end_of_name(request, _HEADER.size)
    if end is None or len(request) < end + 4:
        return None
    kind = struct.unpack_from("!H", request, end)[0]
    data = _record(kind, identity, address)
    ident = struct.unpack_from("!H", request)[0]
    header = _HEADER.pack(ident, _RESPONSE, 1, 1 if data else 0, 0, 0)
    found = struct.pack("!HHHIH", _NAME_OF_QUESTION, kind, _IN, 0, len(data)) if data else b""
    return header + request[_HEADER.size : end + 4] + found + data


def _record(kind: int, identity: str, address: str) -> bytes:
    if kind == TXT:
        text = identity.encode()[:255]
        return bytes([len(text)]) + text
    family = {A: socket.AF_INET, AAAA: socket.AF_INET6}.get(kind)
    if family is None or (":" in address) != (kind == AAAA):
        return b""
    return socket.inet_pton(family, address)


def text(response: bytes, ident: int) -> str | None:
    """The text of a TXT response to the query `ident`; None if it is not one."""
    if len(response) < _HEADER.size:
        return None
    got, flags, questions, answers, _, _ = _HEADER.unpack_from(response)
    end = _end_of_name(response, _HEADER.size)
    if got != ident or not flags & 0x8000 or questions != 1 or answers != 1 or end is None:
        return None
    start = end + 4 + 12  # the question's type and class; the answer up to its data
    if len(response) <= start:
        return None
    return response[start + 1 : start + 1 + response[start]].decode("ascii", "replace")


def _end_of_name(message: bytes, start: int) -> int | None:
    """Where an uncompressed name ends."""
    while start < len(message):
        length = message[start]
        if length == 0:
            return start + 1
        if length > 63:
            return None
        start += 1 + length
    return None
