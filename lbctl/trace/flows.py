"""What is asked: the first packet of a connection, from a file of flows or from two arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from lbctl.addresses import family_of, parse_address
from lbctl.errors import UsageError
from lbctl.model.records import Protocol

Arrival = Literal["pod", "uplink", "node"]

_PROTOCOLS = ", ".join(p.name for p in Protocol)
_ENDPOINT_HINT = "Give a destination like 172.30.0.41:80/tcp or [fd00:1::41]:53/udp."


class Flow(msgspec.Struct, frozen=True):
    """A connection's first packet. Addresses are 16 bytes and of one family."""

    name: str
    source: bytes
    destination: bytes
    port: int
    protocol: Protocol
    arrives: Arrival | None = None  # where it enters; None: as its source address says


class _FileFlow(msgspec.Struct, frozen=True):
    """One flow as a file has it."""

    source_ip: str
    dest_ip: str
    dest_port: int
    protocol: str
    name: str = ""
    arrives: Arrival | None = None


def read_flows(path: Path) -> list[Flow]:
    """The flows of a JSON file: a list of {"name", "source_ip", "dest_ip", "dest_port", "protocol"}
    and optionally "arrives". Other keys are ignored.

    Raises UsageError naming the file, the flow and the field.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[_FileFlow])
    except OSError as error:
        raise UsageError(
            f"--flows {path}: {error.strerror}",
            'The file holds a JSON list of {"name", "source_ip", "dest_ip", "dest_port", '
            '"protocol"}.',
        ) from error
    except msgspec.DecodeError as error:
        raise UsageError(
            f"--flows {path}: {error}",
            'Expected is a JSON list of {"name", "source_ip", "dest_ip", "dest_port", "protocol"}, '
            'optionally with "arrives": pod, uplink or node.',
        ) from error
    return [_from_file(path, number, flow) for number, flow in enumerate(found)]


def _from_file(path: Path, number: int, flow: _FileFlow) -> Flow:
    try:
        return _flow(
            flow.name,
            flow.source_ip,
            flow.dest_ip,
            flow.dest_port,
            flow.protocol,
            flow.arrives,
        )
    except UsageError as error:
        label = f"{number} ({flow.name})" if flow.name else str(number)
        raise UsageError(f"--flows {path}, flow {label}: {error.message}", error.hint) from error


def parse_flow(source: str, destination: str) -> Flow:
    """A flow from a source address and a destination ADDRESS:PORT[/PROTOCOL].

    IPv6 addresses with a port stand in brackets; without protocol TCP is meant. Raises UsageError.
    """
    place, _, protocol = destination.partition("/")
    host, port = _split(place, destination)
    name = f"{source} {destination}"
    return _flow(name, source.strip("[]"), host, port, protocol or "TCP", None)


def _split(place: str, whole: str) -> tuple[str, int]:
    """Address and port of `1.2.3.4:80` or `[fd00::1]:80`."""
    host, colon, port = place.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not bracketed):
        raise UsageError(f"{whole!r} does not name an address and a port", _ENDPOINT_HINT)
    if not (port.isascii() and port.isdigit()):
        raise UsageError(f"{whole!r}: {port!r} is not a port number", _ENDPOINT_HINT)
    return host[1:-1] if bracketed else host, int(port)


def _flow(
    name: str, source: str, destination: str, port: int, protocol: str, arrives: Arrival | None
) -> Flow:
    ends = _address("source", source), _address("destination", destination)
    if family_of(ends[0]) != family_of(ends[1]):
        raise UsageError(
            f"source {source} and destination {destination} are of different families",
            "A packet has two IPv4 or two IPv6 addresses.",
        )
    if not 0 < port < 65536:
        raise UsageError(f"destination port {port} is not between 1 and 65535")
    if protocol.upper() not in Protocol.__members__:
        raise UsageError(f"unknown protocol {protocol!r}", f"Known: {_PROTOCOLS}.")
    return Flow(name, *ends, port, Protocol[protocol.upper()], arrives)


def _address(which: str, text: str) -> bytes:
    try:
        return parse_address(text)
    except ValueError as error:
        raise UsageError(f"{which}: {error}", "Names are not resolved: give an address.") from error
