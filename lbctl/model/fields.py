"""Values of fields that only a proxy can judge: names, addresses, networks, protocols.

What is wrong costs the value, not the object it stands in: it leaves a remark, with its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from sys import intern
from typing import TypeVar

import msgspec

from lbctl.addresses import IPV4, IPV6, Prefix, host_prefix, parse_address, parse_prefix
from lbctl.model.records import ObjectKey, Protocol

T = TypeVar("T")
R = TypeVar("R")

_LONGEST_NAME = 253  # of an object in any cluster (RFC 1123 subdomain)
_LONGEST_MESSAGE = 200
# A source that no packet has: a list of ranges that holds nothing else lets nobody in.
NOBODY = {IPV4: host_prefix(parse_address("0.0.0.0")), IPV6: host_prefix(parse_address("::"))}


class InvalidField(ValueError):
    """A field whose value the API server would not accept. `path` is like spec.clusterIPs[0]."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {shortened(message)}" if path else shortened(message))


class Remarks:
    """What was wrong with parts of one object: the first of it in words, the others counted."""

    def __init__(self) -> None:
        self._first = ""
        self._count = 0

    def add(self, fault: InvalidField) -> None:
        """One more part that costs only itself."""
        self._first = self._first or str(fault)
        self._count += 1

    def __bool__(self) -> bool:
        return self._count > 0

    def __str__(self) -> str:
        return f"{self._first} (and {self._count - 1} more)" if self._count > 1 else self._first


def shortened(text: str, limit: int = _LONGEST_MESSAGE) -> str:
    """One printable line of bounded length, from texts that may hold anything. What is left out is
    in the middle: what is wrong often stands at the end."""
    tail = limit // 3
    cut = text if len(text) <= limit else f"{text[: limit - tail - 3]}...{text[-tail:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def identity(name: str, namespace: str) -> ObjectKey:
    """The key of an object. Raises InvalidField for what no object can be called."""
    if not name:
        raise InvalidField("metadata.name", "is missing")
    for field, text in (("name", name), ("namespace", namespace)):
        if len(text) > _LONGEST_NAME or "/" in text or "\ufffd" in text or not text.isprintable():
            raise InvalidField(f"metadata.{field}", f"{text!r} is no name of an object")
    return ObjectKey(intern(namespace), name)


def seniority(path: str, created: str | None, uid: str, remarks: Remarks) -> bytes:
    """Bytes that sort by age: the second an object was made, then its uid. Empty without one."""
    if not created:
        return b""
    try:
        seconds = int(datetime.fromisoformat(created).timestamp())
        return max(seconds, 0).to_bytes(8, "big") + _uid(uid)
    except (ValueError, OverflowError):
        remarks.add(InvalidField(f"{path}.creationTimestamp", f"{created!r} is no time"))
        return b""


def moment(text: str | None) -> float:
    """Seconds since the epoch; 0 for what is no time, of which nothing but a measurement hangs."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0.0
    except (ValueError, OverflowError):
        return 0.0


def _uid(text: str) -> bytes:
    """16 bytes in the order of the texts: those of a UUID, as API servers make them."""
    try:
        found = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        found = b""
    return found if len(found) == 16 else text.encode(errors="replace")[:16]


def address(path: str, text: str) -> bytes:
    """16 bytes. Raises InvalidField."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise InvalidField(path, str(error)) from error


def good(
    values: Iterable[T] | None, make: Callable[[int, T], R | None], remarks: Remarks
) -> tuple[R, ...]:
    """What `make` makes of each value and its index, but for those it calls an InvalidField, and
    those it leaves out with None."""
    found = []
    for i, value in enumerate(values or ()):
        try:
            made = make(i, value)
        except InvalidField as fault:
            remarks.add(fault)
            continue
        if made is not None:
            found.append(made)
    return tuple(found)


def addresses(path: str, texts: Iterable[str] | None, remarks: Remarks) -> tuple[bytes, ...]:
    """Those that are addresses, in their order."""
    return good(texts, lambda i, text: address(f"{path}[{i}]", text), remarks)


def prefixes(path: str, texts: Iterable[str] | None, remarks: Remarks) -> tuple[Prefix, ...]:
    """Those that are networks, in their order."""
    return good(texts, lambda i, text: _prefix(f"{path}[{i}]", text), remarks)


def source_ranges(path: str, value: object, remarks: Remarks) -> tuple[Prefix, ...]:
    """Who may call. What cannot be read closes: it must not let in those it was to keep out, as it
    would if it were left away and nothing else stood in the list."""
    if value is None:
        return ()
    if not isinstance(value, list):
        remarks.add(InvalidField(path, f"expected array, got {type(value).__name__}"))
        return tuple(NOBODY.values())
    found: list[Prefix] = []
    closed: set[int] = set()
    for i, text in enumerate(value):
        try:
            found.append(_prefix(f"{path}[{i}]", text))
        except InvalidField as fault:
            remarks.add(fault)
            if isinstance(text, str) and text.strip():
                closed.add(IPV6 if ":" in text else IPV4)
            else:
                closed |= {IPV4, IPV6}
    closed -= {prefix.family for prefix in found}
    return (*found, *(NOBODY[family] for family in sorted(closed)))


def protocol(path: str, text: str | None) -> Protocol:
    """TCP if it is left out. Raises InvalidField."""
    try:
        return Protocol[text or "TCP"]
    except KeyError as error:
        known = ", ".join(p.name for p in Protocol)
        raise InvalidField(f"{path}.protocol", f"{text!r} is none of {known}") from error


def choice(
    path: str, text: str | None, known: tuple[str, ...], default: str, remarks: Remarks
) -> str:
    """One of the known words; every other word counts as the default."""
    if not text or text in known:
        return text or default
    remarks.add(InvalidField(path, f"{text!r} is none of {', '.join(known)}; {default} is used"))
    return default


def _prefix(path: str, value: object) -> Prefix:
    if not isinstance(value, str):
        raise InvalidField(path, f"expected str, got {_json_name(value)}")
    try:
        return parse_prefix(value)
    except ValueError as error:
        raise InvalidField(path, str(error)) from error


def _json_name(value: object) -> str:
    """What JSON calls the type of a value, in msgspec's words."""
    if value is None:
        return "null"
    names: dict[type, str] = {dict: "object", list: "array"}
    return names.get(type(value), type(value).__name__)


def fault_of(path: str, error: msgspec.ValidationError) -> InvalidField:
    """The same fault with the path of where the value stands."""
    text = str(error).replace("`", "")
    return InvalidField(path, text[:1].lower() + text[1:])
