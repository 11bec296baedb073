"""Makes requests to service addresses and writes down when each began and ended, and who answered.

Run inside a pod as `python request_log.py COUNT RATE ADDRESS...`: each request goes to the next
address, over a new TCP connection and over a new UDP socket in turn. It ends when COUNT were made
and SIGTERM has come, with one line for each on standard output: start, end (seconds of the
monotonic clock), protocol, server or "!" and the error.
"""

from __future__ import annotations

import itertools
import signal
import socket
import sys
import threading
import time

PORT = 80
TIMEOUT = 8.0
THREADS = 6


def request(number: int, address: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if number % 2 else socket.SOCK_STREAM
    with socket.socket(family, kind) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect((address, PORT))
        text = b"%d\n" % number
        sock.sendall(text)
        try:
            reply = sock.recv(1000)
        except OSError as error:
            raise OSError(f"{address} from port {sock.getsockname()[1]}: {error!r}") from error
    if not reply.endswith(b" " + text):
        raise OSError(f"{text!r} was answered by {reply!r}")
    return reply.split(b" ", 1)[0].decode()


def main(count: int, rate: float, addresses: list[str]) -> None:
    enough = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: enough.set())
    begin = time.monotonic()
    lines: list[str] = []

    def work(first: int) -> None:
        for number in itertools.count(first, THREADS):
            if number >= count and enough.is_set():
                return
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))
            start = time.monotonic()
            try:
                server = request(number, addresses[number // 2 % len(addresses)])
            except OSError as error:
                server = f"! {error!r}"
            kind = "udp" if number % 2 else "tcp"
            lines.append(f"{start} {time.monotonic()} {kind} {server}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)  # a signal is only handled between two joins
    print("\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
