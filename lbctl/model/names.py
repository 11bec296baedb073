"""What a service port is called: one text per object, port, protocol and family.

The agent writes it into the map `names`, knows ports by it, and people and programs read it:
`namespace/service:port/TCP/v4`, without `:port` where the port has no name. Two ports never have
one text: what separates the parts cannot stand inside one. No API server lets it, a file may, and
then it is written as %3A (say) here, in every listing and in what is asked for.
"""

from __future__ import annotations

import re
from hashlib import sha256

import msgspec

from lbctl.model.records import ObjectKey

# Everything that names have in a cluster stays as it is. `~` tells a shortened text.
_UNUSUAL = re.compile(rb"[^A-Za-z0-9._-]")
_UNUSUAL_TEXT = re.compile(_UNUSUAL.pattern.decode())
_ESCAPED = re.compile(rb"%([0-9A-F]{2})")
_DIGEST_LENGTH = 12


def port_text(service: ObjectKey, port: str, protocol: str, family: int) -> str:
    """The text of one port of a service; `port` is its name, which may be empty."""
    namespace, name = service.namespace, service.name
    if _UNUSUAL_TEXT.search(f"{namespace}{name}{port}"):  # else all of it is as it is to be
        namespace, name, port = map(_escape, (namespace, name, port))
    return f"{namespace}/{name}{':' if port else ''}{port}/{protocol}/v{family}"


def shortened(text: str, limit: int) -> str:
    """The text itself if it has at most `limit` bytes, else its start and a hash of it all: three
    labels of 63 characters do not fit into the map."""
    if text.isascii() and len(text) <= limit:
        return text
    raw = text.encode()
    if len(raw) <= limit:
        return text
    digest = sha256(raw).hexdigest()[:_DIGEST_LENGTH]
    return raw[: limit - _DIGEST_LENGTH - 1].decode(errors="ignore") + "~" + digest


class PortName(msgspec.Struct, frozen=True, order=True):
    """The parts of such a text."""

    namespace: str
    service: str
    port: str  # the port's name, may be empty
    protocol: str
    family: str  # v4 or v6
    text: str

    @classmethod
    def parse(cls, text: str) -> PortName:
        """Every text is read. Protocol and family are empty if it was shortened, and the namespace
        too if it was never one of ours."""
        owner, slash, rest = text.partition("/")
        namespace, service = (owner, rest) if slash else ("", owner)
        service, *kind = service.split("/")
        protocol, family = kind if len(kind) == 2 else ("", "")
        service, _, port = service.partition(":")
        return cls(_plain(namespace), _plain(service), _plain(port), protocol, family, text)

    @property
    def owner(self) -> ObjectKey:
        """The service. Of a shortened text it may be cut off, if its own names are long."""
        return ObjectKey(self.namespace, self.service)

    @property
    def label(self) -> str:
        """`namespace/service:port`, as people write it. A text that was shortened, whole."""
        return self.text.rsplit("/", 2)[0] if self.family else self.text

    @property
    def service_label(self) -> str:
        """`namespace/service`, likewise."""
        return self.label.partition(":")[0]

    def matches(self, query: str) -> bool:
        """Does `query` mean this port: `service`, `namespace/service`, with or without `:port`,
        or the whole text."""
        if query == self.text:
            return True
        wanted, _, wanted_port = query.partition(":")
        own, _, own_port = self.label.partition(":")
        if wanted_port and wanted_port != own_port:
            return False
        return wanted in (own, own.partition("/")[2] or own)


def _escape(name: str) -> str:
    raw = name.encode(errors="surrogatepass")
    if not _UNUSUAL.search(raw):
        return name
    return _UNUSUAL.sub(lambda found: b"%%%02X" % found[0][0], raw).decode("ascii")


def _plain(escaped: str) -> str:
    if "%" not in escaped:
        return escaped
    raw = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), escaped.encode())
    return raw.decode(errors="replace")
