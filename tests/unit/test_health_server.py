"""The health servers on loopback: answers, listening, and clients that misbehave."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest

from lbctl.addresses import parse_address
from lbctl.config.bind import ANY6, Bind
from lbctl.health import answers, connection, monitor, server
from lbctl.health.answers import Answer, Condition
from lbctl.health.monitor import Health, Verdict
from lbctl.health.server import Route, Server
from lbctl.model.records import ServiceObjects
from tests.support.balancers import KEY, NODE, balancer, objects
from tests.support.k8s_objects import endpoint
from tests.support.waiting import wait_until

LOOPBACK = parse_address("127.0.0.1")
BOUND = 10.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ask(
    port: int, path: str = "/", method: str = "GET", host: str = "127.0.0.1"
) -> tuple[int, dict[str, str], bytes]:
    client = http.client.HTTPConnection(host, port, timeout=BOUND)
    try:
        client.request(method, path)
        answer = client.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        client.close()


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def health() -> Iterator[Health]:
    made = Health()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def http_server() -> Iterator[Server]:
    made = Server()
    made.start()
    yield made
    made.stop()


def fixed(text: bytes) -> Route:
    return Route("test", lambda path: Answer(HTTPStatus.OK, text + path.encode()))


# Answers


def test_a_service_with_endpoints() -> None:
    answer = answers.service_answer(KEY, 2, True)
    assert answer.status == HTTPStatus.OK
    assert json.loads(answer.body) == {
        "service": {"namespace": "ns1", "name": "svc1"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert dict(answer.headers) == {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        "X-Load-Balancing-Endpoint-Weight": "2",
    }


@pytest.mark.parametrize(("count", "healthy"), [(0, True), (2, False), (0, False)])
def test_a_service_without_endpoints_or_a_sick_proxy(count: int, healthy: bool) -> None:
    answer = answers.service_answer(KEY, count, healthy)
    assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert json.loads(answer.body)["localEndpoints"] == count
    assert json.loads(answer.body)["serviceProxyHealthy"] is healthy


def condition(**changes: Any) -> Condition:
    names = ("alive", "fit", "ready", "settled", "eligible")
    given: dict[str, Any] = dict.fromkeys(names, True) | changes
    return Condition(**given, updated=1_700_000_000.0, now=1_700_000_100.5)


@pytest.mark.parametrize(
    ("changes", "healthz", "livez", "readyz"),
    [
        ({}, 200, 200, 200),
        ({"eligible": False}, 503, 200, 200),
        ({"ready": False}, 503, 200, 503),
        ({"settled": False}, 200, 200, 503),
        ({"fit": False}, 503, 200, 503),
        ({"alive": False}, 503, 503, 503),
    ],
)
def test_health_life_and_readiness(
    changes: dict[str, bool], healthz: int, livez: int, readyz: int
) -> None:
    """A restart mends a loop that hangs. What an object or the kernel does to one agent it may do
    to all of them, so that nothing else restarts any."""
    assert answers.healthz(condition(**changes)).status == healthz
    assert answers.livez(condition(**changes)).status == livez
    assert answers.readyz(condition(**changes)).status == readyz


def test_what_is_wrong_is_said() -> None:
    sick = condition(settled=False, problems=("no programs on uplink eth0: busy",))
    for answer in (answers.healthz(sick), answers.readyz(sick)):
        assert json.loads(answer.body)["problems"] == ["no programs on uplink eth0: busy"]


def test_times() -> None:
    body = json.loads(answers.healthz(condition()).body)
    assert body == {
        "lastUpdated": "2023-11-14T22:15:00.500Z",
        "currentTime": "2023-11-14T22:15:00.500Z",
        "nodeEligible": True,
    }
    stale = json.loads(answers.livez(condition(alive=False)).body)
    assert stale == {
        "lastUpdated": "2023-11-14T22:13:20.000Z",
        "currentTime": "2023-11-14T22:15:00.500Z",
    }


# What the loop reports


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def timed(clock: list[float]) -> Iterator[Health]:
    made = Health(lambda: clock[0])
    yield made
    made.stop()


def test_a_change_that_stays_unwritten_is_stale(timed: Health, clock: list[float]) -> None:
    assert timed.condition().healthy
    assert not timed.unwritten()
    timed.queued()
    clock[0] += monitor.STALE_SECONDS - 1
    timed.queued()  # more of it makes the first no younger
    assert timed.condition().healthy
    clock[0] += 2
    assert not timed.condition().healthy
    assert timed.condition().alive  # a restart would not mend it
    assert timed.unwritten()
    timed.written()
    assert timed.condition().healthy
    assert timed.condition().updated > 0


def test_a_loop_that_hangs_is_not_healthy(timed: Health, clock: list[float]) -> None:
    clock[0] += monitor.SILENT_SECONDS + 1
    assert not timed.condition().healthy
    assert not timed.condition().alive
    timed.turned()
    assert timed.condition().healthy


def test_before_anything_is_served_it_lives_but_is_not_ready(health: Health) -> None:
    port = free_port()
    health.set_places(Bind(LOOPBACK, port), ())
    wait_until(lambda: listens(port), BOUND)
    assert (ask(port, "/livez")[0], ask(port, "/healthz")[0]) == (200, 503)
    health.ready()
    assert ask(port, "/healthz?verbose")[0] == 200
    health.set_eligible(False)
    status, _, body = ask(port, "/healthz")
    assert (status, json.loads(body)["nodeEligible"]) == (503, False)
    assert ask(port, "/livez")[0] == 200
    assert ask(port, "/metrics")[0] == 404
    assert ask(port, "/readyz")[0] == 503
    health.judge(Verdict(settled=True))
    assert ask(port, "/readyz")[0] == 200
    health.judge(Verdict(settled=True, fit=False, problems=("x",)))
    assert ask(port, "/livez")[0] == 200
    assert json.loads(ask(port, "/healthz")[2])["problems"] == ["x"]


def test_the_mode_of_the_proxy(health: Health) -> None:
    """As upstream's test asks kube-proxy; /metrics comes there too."""
    port = free_port()
    health.set_places(None, (), Bind(LOOPBACK, port))
    wait_until(lambda: listens(port), BOUND)
    status, headers, body = ask(port, "/proxyMode")
    assert (status, body) == (200, b"lbctl")
    assert headers["Content-Type"].startswith("text/plain")
    assert ask(port, "/healthz")[0] == 404
    health.set_places(Bind(LOOPBACK, port), (), Bind(LOOPBACK, port))
    wait_until(lambda: ask(port, "/livez")[0] == 200, BOUND)
    assert ask(port, "/proxyMode")[0] == 200
    health.set_places(None, ())
    wait_until(lambda: not listens(port), BOUND)


def test_a_service_comes_changes_and_goes(health: Health) -> None:
    port = free_port()
    health.set_places(None, (LOOPBACK,))
    health.take({KEY: objects(balancer(port=port), endpoint("10.0.0.1"))}, NODE)
    wait_until(lambda: listens(port), BOUND)
    status, headers, body = ask(port, "/any/path")
    assert (status, headers["X-Load-Balancing-Endpoint-Weight"]) == (200, "1")
    assert json.loads(body)["localEndpoints"] == 1
    health.take({KEY: objects(balancer(port=port))}, NODE)
    assert ask(port)[0] == 503
    other = free_port()
    health.take({KEY: objects(balancer(port=other), endpoint("10.0.0.1"))}, NODE)
    wait_until(lambda: listens(other) and not listens(port), BOUND)
    health.take({KEY: ServiceObjects(None)}, NODE)
    wait_until(lambda: not listens(other), BOUND)


# The server


def test_both_families_on_the_unspecified_address(http_server: Server) -> None:
    port = free_port()
    http_server.serve({Bind(ANY6, port, both=True): fixed(b"")})
    wait_until(lambda: listens(port), BOUND)
    for host in ("127.0.0.1", "::1"):
        assert ask(port, "/x", host=host)[2] == b"/x"


def test_sockets_that_stay_are_not_touched(http_server: Server) -> None:
    port, other = free_port(), free_port()
    http_server.serve({Bind(LOOPBACK, port): fixed(b"one")})
    wait_until(lambda: listens(port), BOUND)
    before = http_server._listening[Bind(LOOPBACK, port)]
    http_server.serve({Bind(LOOPBACK, port): fixed(b"two"), Bind(LOOPBACK, other): fixed(b"")})
    wait_until(lambda: listens(other), BOUND)
    assert http_server._listening[Bind(LOOPBACK, port)] is before
    assert ask(port)[2] == b"two/"


def test_a_port_in_use_is_reported_and_taken_when_free(
    http_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RETRY_SECONDS", 0.05)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        free = free_port()
        http_server.serve({Bind(LOOPBACK, port): fixed(b""), Bind(LOOPBACK, free): fixed(b"")})
        wait_until(lambda: listens(free), BOUND)  # the others do not wait
        wait_until(http_server.problems, BOUND)
        (problem,) = http_server.problems()
        assert f"cannot listen on 127.0.0.1:{port} for test: another process" in problem
    wait_until(lambda: not http_server.problems(), BOUND)
    assert ask(port)[0] == 200


def test_an_address_the_node_does_not_have() -> None:
    bind = Bind(parse_address("192.0.2.77"), 10256)
    with pytest.raises(OSError, match="Cannot assign") as caught:
        server.listening_socket(bind)
    assert "this node does not have the address now" in server.explain(bind, "x", caught.value)


def test_a_thread_that_ends_leaves_its_sockets_to_the_next(http_server: Server) -> None:
    port, bad = free_port(), free_port()

    def fail(path: str) -> Answer:
        raise RuntimeError(path)

    http_server.serve({Bind(LOOPBACK, bad): Route("bad", fail), Bind(LOOPBACK, port): fixed(b"")})
    wait_until(lambda: listens(port) and listens(bad), BOUND)
    before = dict(http_server._listening)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(bad)
    wait_until(lambda: not http_server.watched.alive, BOUND)
    http_server.watched.check()
    due = http_server.watched.due()
    assert due is not None
    wait_until(lambda: time.monotonic() >= due, BOUND)
    http_server.watched.check()
    assert http_server.watched.restarts == 1
    assert ask(port)[0] == 200
    assert http_server._listening == before


def test_head_and_other_methods(http_server: Server) -> None:
    port = free_port()
    http_server.serve({Bind(LOOPBACK, port): fixed(b"body")})
    wait_until(lambda: listens(port), BOUND)
    status, headers, body = ask(port, "/", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "5", b"")
    status, headers, _ = ask(port, "/", "POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET x HTTP/1.1\r\n\r\n", 400),
        (b"\xff\xfe /\x00 HTTP/1.1\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * connection.MAX_HEAD, 431),
    ],
)
def test_what_is_no_request(http_server: Server, sent: bytes, status: int) -> None:
    port = free_port()
    http_server.serve({Bind(LOOPBACK, port): fixed(b"")})
    wait_until(lambda: listens(port), BOUND)
    with socket.create_connection(("127.0.0.1", port), BOUND) as client:
        client.sendall(sent)
        assert client.recv(4096).startswith(b"HTTP/1.1 %d " % status)


def test_a_request_in_pieces(http_server: Server) -> None:
    port = free_port()
    http_server.serve({Bind(LOOPBACK, port): fixed(b"")})
    wait_until(lambda: listens(port), BOUND)
    with socket.create_connection(("127.0.0.1", port), BOUND) as client:
        for piece in (b"GET /slow", b"ly HTTP/1.1\r\nHost: x", b"\r\n\r", b"\n"):
            client.sendall(piece)
            ask(port)  # a turn of the loop in between
        assert client.recv(4096).endswith(b"\r\n\r\n/slowly")


def test_idle_clients_give_way(http_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    port = free_port()
    http_server.serve({Bind(LOOPBACK, port): fixed(b"")})
    wait_until(lambda: listens(port), BOUND)
    idle = [socket.create_connection(("127.0.0.1", port), BOUND) for _ in range(3)]
    try:
        assert ask(port)[0] == 200
        assert idle[0].recv(1) == b""
    finally:
        for client in idle:
            client.close()


def test_idle_clients_are_sent_away(http_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTION_SECONDS", 0.05)
    port = free_port()
    http_server.serve({Bind(LOOPBACK, port): fixed(b"")})
    wait_until(lambda: listens(port), BOUND)
    with socket.create_connection(("127.0.0.1", port), BOUND) as client:
        assert client.recv(1) == b""
