"""The page's server: to be read by who asks for it by its own name, and by nobody else's page."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbctl import ui
from lbctl.errors import NotFound
from lbctl.ui.server import Query, Server

PAGE = Path(ui.__file__).with_name("page")


def answer(query: Query) -> object:
    if "missing" in query:
        raise NotFound("there is none", "Look elsewhere.")
    return {"asked": dict(query)}


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    made = Server(request.param, 0, {"/api/thing": answer})
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.shutdown()
    thread.join(10)
    made.server_close()


def ask(
    server: Server, path: str, host: str | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    address, port = server.server_address[:2]
    connection = http.client.HTTPConnection(str(address), port, timeout=10)
    headers = {"Host": host} if host is not None else {}
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    found = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return found


def test_an_answer_and_what_was_asked(server: Server) -> None:
    status, headers, body = ask(server, "/api/thing?a=1&b=x%20y")
    assert (status, json.loads(body)) == (200, {"asked": {"a": "1", "b": "x y"}})
    assert headers["Content-Type"] == "application/json"


def test_an_error_says_what_to_do(server: Server) -> None:
    status, _, body = ask(server, "/api/thing?missing=1")
    assert status == 400
    assert json.loads(body) == {"error": "there is none", "hint": "Look elsewhere."}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8042", 200),
        ("localhost", 200),
        ("localhost:9999", 200),  # a port-forward
        ("[::1]:8042", 200),
        ("attacker.example:8042", 421),
        ("localhost.attacker.example", 421),
        ("127.0.0.1.attacker.example:8042", 421),
        ("10.0.0.1", 421),
        ("localhost:1:2", 421),
        ("", 421),
    ],
)
def test_a_name_that_was_bound_to_loopback_gets_nothing(
    server: Server, host: str, status: int
) -> None:
    for path in ("/", "/api/thing"):
        found, _, body = ask(server, path, host)
        assert found == status
        assert (b'"asked"' in body or b"<!doctype" in body) == (status == 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_changed(server: Server, method: str) -> None:
    assert ask(server, "/api/thing", method=method)[0] == 501


@pytest.mark.parametrize("path", ["/../server.py", "/page/index.html", "/api", "/index.html"])
def test_there_is_nothing_else(server: Server, path: str) -> None:
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize("path", ["/", "/page.js", "/map.js", "/page.css", "/icon.svg"])
def test_the_page_may_load_its_own_files_alone(server: Server, path: str) -> None:
    status, headers, body = ask(server, path)
    assert status == 200
    assert body
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "*" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


def test_the_files_name_no_other_host_and_make_no_markup_of_text() -> None:
    for path in PAGE.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", text), path.name
