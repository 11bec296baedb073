"""The traffic tools, over loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from lbctl.lab.traffic import clients, dns, servers
from lbctl.lab.traffic.report import Answer, Recorder, WrongAnswer, kind_of

LOOPBACKS = ["127.0.0.1", "::1"]


def traffic(*arguments: str) -> dict[str, object]:
    """Run a client by its command line and return its report."""
    done = subprocess.run(
        [sys.executable, "-m", "lbctl.lab.traffic", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def serve(kind: str) -> Iterator[int]:
    """Run a server as a process; yields its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lbctl.lab.traffic", kind, "--name", "me", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        yield int(process.stdout.readline().split()[-1])
        process.kill()


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    yield from serve("http-server")


@pytest.fixture(scope="module")
def udp_port() -> Iterator[int]:
    yield from serve("udp-server")


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of both families on which nobody listens."""
    with servers.listen(socket.SOCK_DGRAM, 0) as held:
        yield held.getsockname()[1]


def at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("keep", [[], ["--keep"]])
def test_http_requests_are_counted_by_server(http_port: int, address: str, keep: list[str]) -> None:
    where = at(address, http_port)
    report = traffic("http", where, "--requests", "50", "--rate", "2000", *keep)
    assert (report["sent"], report["ok"], report["failures"]) == (50, 50, {})
    assert report["servers"] == {"me": 50}
    assert report["seen_as"] == {address: 50}


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("mode", ["dns", "echo"])
@pytest.mark.parametrize("keep", [[], ["--keep"]])
def test_udp_requests_are_counted(udp_port: int, address: str, mode: str, keep: list[str]) -> None:
    where = at(address, udp_port)
    report = traffic(mode, where, "--requests", "20", "--rate", "1000", "--bytes", "9000", *keep)
    assert (report["sent"], report["servers"]) == (20, {"me": 20})


def test_bulk_transfers_compare_checksums(http_port: int) -> None:
    where = at("::1", http_port)
    report = traffic("bulk", where, "--requests", "2", "--bytes", "3000001")
    assert (report["sent"], report["servers"]) == (2, {"me": 2})


@pytest.mark.parametrize("address", LOOPBACKS)
def test_refused_connections_are_failures(closed_port: int, address: str) -> None:
    report = traffic("http", at(address, closed_port), "--requests", "3", "--rate", "1000")
    assert (report["ok"], report["failures"]) == (0, {"refused": 3})


def test_a_client_stops_after_its_time(http_port: int) -> None:
    report = traffic("http", at("127.0.0.1", http_port), "--seconds", "0.5", "--rate", "20")
    assert report["sent"] == 10


def test_a_client_told_to_stop_still_reports(http_port: int) -> None:
    command = [sys.executable, "-m", "lbctl.lab.traffic", "http", at("127.0.0.1", http_port)]
    with subprocess.Popen(
        [*command, "--rate", "200"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        assert client.stderr is not None
        assert client.stderr.readline() == "started\n"
        threading.Event().wait(0.1)
        client.terminate()
        output, _ = client.communicate(timeout=30)
    report = json.loads(output)
    assert report["sent"] == report["ok"] > 0


def test_an_answer_from_another_server_on_a_kept_connection_is_wrong() -> None:
    changed = _ChangingServer()
    with changed:
        moving = clients.http_keeping(("127.0.0.1", changed.port), 5)
        assert moving(0).server == "one"
        with pytest.raises(WrongAnswer, match="moved from one to two"):
            moving(1)


class _ChangingServer:
    """A server that gives another name with every answer on a connection."""

    def __init__(self) -> None:
        self._socket = servers.listen(socket.SOCK_STREAM, 0, "127.0.0.1")
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(timeout=10)
        self._socket.close()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection, connection.makefile("rb") as stream:
            for name in ("one", "two"):
                servers._answer_request(connection, stream, name, "")


def test_dns_answers_repeat_the_question_and_name_the_server() -> None:
    query = dns.query(0x1234, "a.lab.test")
    response = dns.answer(query, "pod1", "10.0.0.1")
    assert response is not None
    assert dns.text(response, 0x1234) == "pod1"
    assert dns.text(response, 0x4321) is None


@pytest.mark.parametrize(("kind", "address"), [(dns.A, "10.1.2.3"), (dns.AAAA, "fd00::7")])
def test_dns_answers_addresses(kind: int, address: str) -> None:
    response = dns.answer(dns.query(1, "x.test", kind), "pod1", address)
    family = socket.AF_INET6 if kind == dns.AAAA else socket.AF_INET
    assert response is not None
    assert response.endswith(socket.inet_pton(family, address))


@pytest.mark.parametrize("data", [b"", b"abc", bytes(12), dns.query(1, "a.b")[:-3], b"\xff" * 40])
def test_what_is_no_dns_query_gets_no_answer(data: bytes) -> None:
    assert dns.answer(data, "pod1", "10.0.0.1") is None
    assert dns.text(data, 1) is None


def test_failures_have_names_and_the_first_are_noted() -> None:
    recorder = Recorder("x")
    recorder.answered(Answer("a", "c"), 0.002)
    recorder.answered(Answer("b"), 1.5)
    for error in (
        ConnectionRefusedError(),
        TimeoutError(),
        ConnectionResetError(),
        WrongAnswer("w"),
    ):
        recorder.failed(error)
    report = json.loads(recorder.finish())
    assert report["failures"] == {"refused": 1, "timeout": 1, "reset": 1, "wrong": 1}
    assert (report["sent"], report["ok"], report["slow"]) == (6, 2, 1)
    assert report["max_ms"] == 1500
    assert len(report["notes"]) == 4
    assert kind_of(OSError(113, "no route")) == "unreachable"
