"""The connection generator without a compiler: same arguments and output as connect.c, see there,
without the mode "many".

A call from Python costs about a microsecond, which is in every figure; ratios to the floor come out
smaller than they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import struct
import sys
import time

WARM_UP = 20
WAIT_SECONDS = 1.0
CLONE_NEWNET = 0x40000000
RESET = struct.pack("ii", 1, 0)  # linger, for 0 seconds: closing resets

Target = tuple[str, int]


def enter(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path) as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)


def listen_on(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", port))
    listener.listen(4096)
    listener.settimeout(WAIT_SECONDS)
    return listener


def client(wait_seconds: float = WAIT_SECONDS) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Not settimeout(): that makes the socket non-blocking, and connect() two system calls.
    wait = struct.pack("ll", int(wait_seconds), 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
    return made


def exchange(one: socket.socket, other: socket.socket) -> None:
    one.send(b"x")
    other.recv(1)
    other.send(b"x")
    one.recv(1)


def once(listener: socket.socket, target: Target, whole: bool) -> tuple[int, str]:
    """Nanoseconds of one connection (-1 if it failed), and the address that took it."""
    start = time.monotonic_ns()
    with client() as made:
        if not whole:
            start = time.monotonic_ns()
        try:
            made.connect(target)
            end = time.monotonic_ns()
            accepted, _ = listener.accept()
        except OSError:
            return -1, ""
        with accepted:
            address = str(accepted.getsockname()[0])
            if whole:
                exchange(made, accepted)
    return (time.monotonic_ns() if whole else end) - start, address


def connections(
    listener: socket.socket, targets: list[Target], count: int, whole: bool
) -> tuple[list[int], int]:
    turn = itertools.cycle(targets)
    for _ in range(WARM_UP):
        once(listener, next(turn), whole)
    cpu = time.thread_time_ns()
    times = [once(listener, next(turn), whole)[0] for _ in range(count)]
    return times, time.thread_time_ns() - cpu


def roundtrips(listener: socket.socket, target: Target, count: int) -> tuple[list[int], int]:
    with client() as made:
        made.connect(target)
        accepted, _ = listener.accept()
        with accepted:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(100):
                exchange(made, accepted)
            cpu, times = time.thread_time_ns(), []
            for _ in range(count):
                start = time.monotonic_ns()
                exchange(made, accepted)
                times.append(time.monotonic_ns() - start)
            return times, time.thread_time_ns() - cpu


def watch(listener: socket.socket, target: Target, seconds: int, address: str) -> int:
    end = time.monotonic() + seconds
    started = False
    while time.monotonic() < end:
        took, at = once(listener, target, False)
        if started and at == address:
            print(time.monotonic_ns())
            return 0
        if took >= 0 and not started:
            print("watching", flush=True)
            started = True
        time.sleep(20e-6)
    print(f"no connection reached {address} within {seconds} s", file=sys.stderr)
    return 3


def main(argv: list[str]) -> int:
    mode, client_netns, server_netns, cpu, port, count, *more = argv
    if int(cpu) >= 0:
        os.sched_setaffinity(0, {int(cpu)})
    enter(server_netns)
    listener = listen_on(int(port))
    words = iter(lambda: sys.stdin.readline().split(), [])
    targets = [(ip, int(at)) for ip, at in itertools.takewhile(lambda line: line[0] != ".", words)]
    enter(client_netns)
    if mode == "watch":
        return watch(listener, targets[0], int(count), more[0])
    if mode == "roundtrip":
        times, spent = roundtrips(listener, targets[0], int(count))
    else:
        times, spent = connections(listener, targets, int(count), mode == "cycle")
    with contextlib.suppress(BrokenPipeError):
        print(*times, f"cpu {spent}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
