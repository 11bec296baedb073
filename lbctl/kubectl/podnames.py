"""Names of pods in place of addresses, by the caller's own rights: agents may not list pods."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

# Those of the node's own addresses would all be called by one of their names.
_TEMPLATE = (
    r'{range .items[*]}{.status.phase}{"\t"}{.spec.hostNetwork}{"\t"}'
    r'{.metadata.namespace}/{.metadata.name}{"\t"}{.status.podIPs[*].ip}{"\n"}{end}'
)
PODS = ("get", "pods", "--all-namespaces", f"--output=jsonpath={_TEMPLATE}")
_LIVING = ("Running", "Pending")
_AGAIN_SECONDS = 30.0  # pods come and go
_MOST_STRANGERS = 100_000
_V4, _V6 = r"\d+\.\d+\.\d+\.\d+", r"[0-9a-f]*:[0-9a-f:]*:[0-9a-f.]*"
# An address that stands alone, its port, and the blanks that fill a column behind it.
_ADDRESS = re.compile(
    rf"(?<![\w.:/\[-])(?:\[(?P<six>{_V6})\]|(?P<four>{_V4})|(?P<bare>{_V6}))"
    rf"(?![\w./])(?P<port>:\d+)?(?![\w./])(?P<rest> *)"
)


class PodNames:
    """By address. Reads them again if an address shows up that has no name, not too often, and not
    again for the same one: services and strangers never have one."""

    def __init__(self, read: Callable[[], str], now: Callable[[], float] = time.monotonic) -> None:
        """`read` gives what kubectl prints for PODS, or raises RuntimeError."""
        self._read = read
        self._now = now
        self._known: Mapping[str, str] = {}
        self._strangers: set[str] = set()
        self._next = float("-inf")

    def load(self) -> None:
        """Read them. Raises RuntimeError."""
        self._next = self._now() + _AGAIN_SECONDS
        self._known = named(self._read())

    def of(self, address: str) -> str:
        """Empty if nobody is known to have it."""
        if found := self._known.get(address, ""):
            return found
        if address in self._strangers or self._now() < self._next:
            return ""
        with contextlib.suppress(RuntimeError):  # what was known is still good
            self.load()
        found = self._known.get(address, "")
        if not found and len(self._strangers) < _MOST_STRANGERS:
            self._strangers.add(address)
        return found

    def in_text(self, line: str) -> str:
        """The line, with names; what stands in columns stays there where there is room."""
        return _ADDRESS.sub(self._replaced, line)

    def in_data(self, value: Any) -> Any:
        """JSON, in which each side of a flow without a name gets one."""
        if isinstance(value, list):
            return [self.in_data(item) for item in value]
        if not isinstance(value, dict):
            return value
        found = {key: self.in_data(item) for key, item in value.items()}
        if found.get("name") == "" and isinstance(found.get("address"), str):
            found["name"] = self.of(found["address"])
        return found

    def in_json(self, text: str) -> str:
        """An object on one line."""
        return json.dumps(self.in_data(json.loads(text)), ensure_ascii=False, separators=(",", ":"))

    def _replaced(self, match: re.Match[str]) -> str:
        name = self.of(match["six"] or match["four"] or match["bare"])
        if not name:
            return match[0]
        text = name + (match["port"] or "")
        blanks = len(match["rest"])
        if blanks < 2:
            return text + match["rest"]
        width = len(match[0])
        return text.ljust(width) if len(text) <= width - 2 else f"{text}  "


def named(listed: str) -> dict[str, str]:
    """Names by address, of what kubectl prints for PODS."""
    found = {}
    for line in listed.splitlines():
        phase, host_network, name, addresses = line.split("\t")
        if phase in _LIVING and host_network != "true":
            found.update(dict.fromkeys(addresses.split(), name))
    return found
