"""Command line of the traffic tools. Servers run until killed, clients print a JSON report."""

from __future__ import annotations

import argparse
import socket
import sys

from lbctl.lab.traffic import clients, pace, servers
from lbctl.lab.traffic.report import Answer, Recorder


def main() -> int:
    options = _parser().parse_args()
    if options.mode == "http-server":
        server = servers.listen(socket.SOCK_STREAM, options.port, options.address)
        _say_ready(server)
        servers.serve_http(server, options.name)
    if options.mode == "udp-server":
        server = servers.listen(socket.SOCK_DGRAM, options.port, options.address)
        _say_ready(server)
        servers.serve_udp(server, options.name, options.identity)
    return _client(options)


def _say_ready(server: socket.socket) -> None:
    """One line on standard output, for whoever waits before sending."""
    print(f"listening on port {server.getsockname()[1]}", flush=True)


def _client(options: argparse.Namespace) -> int:
    recorder = Recorder(options.target)
    wanted = pace.Pace(options.requests, options.seconds, options.rate, options.threads)
    pace.run(wanted, lambda: _request(options), recorder)
    print(recorder.finish(), flush=True)
    return 0


def _request(options: argparse.Namespace) -> pace.Request:
    """What one thread of the client does for each number."""
    target = clients.parse_target(options.target)
    timeout: float = options.timeout
    size: int = options.bytes
    if options.mode == "bulk":
        return lambda _: clients.bulk(target, timeout, size)
    if options.mode == "http":
        if options.keep:
            return clients.http_keeping(target, timeout)
        return lambda _: clients.http_once(target, timeout)

    def ask(client: socket.socket) -> Answer:
        if options.mode == "dns":
            return clients.dns_query(client, "lab.test")
        return clients.udp_echo(client, size)

    if options.keep:
        kept = clients.udp_socket(target, timeout)
        return lambda _: ask(kept)

    def once(_: int) -> Answer:
        with clients.udp_socket(target, timeout) as client:
            return ask(client)

    return once


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lbctl.lab.traffic", description=__doc__)
    modes = parser.add_subparsers(dest="mode", required=True, metavar="MODE")
    for mode, text in (
        ("http-server", "answer HTTP with a name; bulk transfers with checksums"),
        ("udp-server", "answer DNS queries (TXT: name, A/AAAA: --identity) and ECHO datagrams"),
    ):
        server = modes.add_parser(mode, help=text)
        server.add_argument("--name", default=socket.gethostname(), help="who answers")
        server.add_argument("--port", type=int, required=True)
        server.add_argument("--address", default="::", help="bind to it (default: everything)")
        server.add_argument("--identity", default="", help="the address in DNS answers")
    for mode, text in (
        ("http", "HTTP requests; with --keep numbered messages over one connection per thread"),
        ("dns", "DNS TXT queries over UDP, each sent once"),
        ("echo", "UDP datagrams of --bytes that must come back unchanged"),
        ("bulk", "per request, send --bytes and receive as many over one connection"),
    ):
        _add_client_options(modes.add_parser(mode, help=text))
    return parser


def _add_client_options(client: argparse.ArgumentParser) -> None:
    client.add_argument("target", help="ADDRESS:PORT or [IPV6]:PORT")
    client.add_argument("--requests", type=int, default=0, help="stop after so many")
    client.add_argument("--seconds", type=float, default=0.0, help="stop after so long")
    client.add_argument("--rate", type=float, default=100.0, help="requests per second")
    client.add_argument("--threads", type=int, default=8, help="requests under way at once")
    client.add_argument("--timeout", type=float, default=5.0, help="seconds for one request")
    client.add_argument("--keep", action="store_true", help="keep the connection or socket")
    client.add_argument("--bytes", type=int, default=1000, help="size for echo and bulk")


if __name__ == "__main__":
    sys.exit(main())
