"""`address:port` as a server's place to listen, in the notation of KubeProxyConfiguration."""

from __future__ import annotations

import msgspec

from lbctl.addresses import format_endpoint, parse_address

ANY4 = parse_address("0.0.0.0")
ANY6 = parse_address("::")
LOOPBACK4 = parse_address("127.0.0.1")
LOOPBACK6 = parse_address("::1")
OFF = "off"
HEALTHZ_PORT = 10256  # kube-proxy's
METRICS_PORT = 10249  # too


class Bind(msgspec.Struct, frozen=True, order=True):
    """Where to listen. `address` is 16 bytes; unspecified means all addresses of its family, and
    with `both` (only with ::) of both families."""

    address: bytes
    port: int
    both: bool = False

    def __str__(self) -> str:
        return format_endpoint(self.address, self.port)


def parse_bind(text: str, default_port: int) -> Bind:
    """`0.0.0.0:10256`, `[::]:10256` (both families, as in kube-proxy), or an address alone, which
    gets the default port. Raises ValueError."""
    host, port = _split(text.strip(), default_port)
    try:
        address = parse_address(host)
    except ValueError as error:
        raise ValueError(f"{text!r} is not an address and port, like 0.0.0.0:10256") from error
    if not 0 < port < 65536:
        raise ValueError(f"{text!r}: the port is not between 1 and 65535")
    return Bind(address, port, both=address == ANY6)


def parse_bind_or_off(text: str, default_port: int = HEALTHZ_PORT) -> Bind | None:
    """The same, with the word that turns it off. Raises ValueError."""
    if text in (OFF, ""):
        return None
    try:
        return parse_bind(text, default_port)
    except ValueError as error:
        raise ValueError(f'{error}, nor "{OFF}"') from error


def _split(text: str, default_port: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") > 1:  # an IPv6 address by itself
        host, port = text, ""
    else:
        host, _, port = text.partition(":")
    if not port:
        return host, default_port
    return host, int(port) if port.isascii() and port.isdigit() else 0
