"""`lbctl ui` in a real browser beside real connections: what it shows is what there is, a click
explains, nothing is asked of any other host, and no other page can read it."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium import webdriver

from lbctl.lab.agents import environment, lbctl_command
from lbctl.lab.cluster import Lab
from tests.lab.support import pictures
from tests.lab.support.answering import answering_lab
from tests.lab.support.faults import answers
from tests.lab.support.labs import PORT, TCP, addresses, client
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
BOUND = 30.0
# What a browser of its own accord asks for, in a network that has no such hosts.
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *(
        "--disable-dev-shm-usage",
        "--window-size=1400,1200",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ),
)


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    with answering_lab(make_lab, "ui") as made:
        yield made


@pytest.fixture(scope="module")
def page(lab: Lab) -> Iterator[str]:
    """Its address, on this machine's loopback: all it reads is in the file system."""
    command = lbctl_command("ui", "--port", "0", "--pin-dir", str(lab.pin_dir("node1")))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium here: ./dev test installs it")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield made
    finally:
        made.quit()


@pytest.fixture
def opened(browser: webdriver.Chrome, page: str) -> webdriver.Chrome:
    browser.get(page)
    wait_until(lambda: "default/web" in text(browser, "#services"), BOUND)
    return browser


def text(browser: webdriver.Chrome, selector: str) -> str:
    found = browser.execute_script(
        "return document.querySelector(arguments[0])?.textContent ?? ''", selector
    )
    assert isinstance(found, str)
    return found


def rows(browser: webdriver.Chrome, table: str) -> list[list[str]]:
    found: list[list[str]] = browser.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))",
        table,
    )
    return found


def click(browser: webdriver.Chrome, selector: str) -> None:
    browser.find_element("css selector", selector).click()


def service_row(browser: webdriver.Chrome, name: str) -> list[str]:
    (found,) = (row for row in rows(browser, "services") if row[0].startswith(f"{name} TCPv4"))
    return found


def test_services_as_they_are(opened: webdriver.Chrome, lab: Lab) -> None:
    assert text(opened, "#node") == "node1"
    assert text(opened, "#state").startswith("ready")
    web, empty = service_row(opened, "default/web:tcp"), service_row(opened, "default/empty:tcp")
    assert addresses("web")[0] in web[1]
    assert (web[2], empty[2]) == ("1", "0")


def test_live_flows_and_who_talks_to_what(opened: webdriver.Chrome, lab: Lab) -> None:
    pod1 = lab.find("pod1").addresses[0]
    with contextlib.ExitStack() as stack:
        for _ in range(7):
            sock = stack.enter_context(client(lab, "pod1", 0, TCP))
            sock.connect((addresses("web")[0], PORT))
        wait_until(lambda: int(service_row(opened, "default/web:tcp")[3]) >= 7, BOUND)
        wait_until(lambda: f"{pod1} (" in text(opened, "#map"), BOUND)
        shown = text(opened, "#map")
        assert "default/web:tcp (" in shown
        assert "default/pod2:7000 (" in shown


def test_what_is_turned_away(opened: webdriver.Chrome, lab: Lab) -> None:
    wait_until(lambda: "lost" in text(opened, "#lost"), BOUND)
    with client(lab, "pod1", 0, TCP) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((addresses("empty")[0], PORT))
    wait_until(
        lambda: ["no_endpoint", "refused"] in [r[:2] for r in rows(opened, "reasons")], BOUND
    )
    wait_until(lambda: any(r[1] == "refused" for r in rows(opened, "events")), BOUND)
    (event,) = (r for r in rows(opened, "events") if r[1] == "refused")
    assert event[6] == "no_endpoint"
    assert "default/empty" in event[4]


def test_new_flows_and_ends_as_they_happen(opened: webdriver.Chrome, lab: Lab) -> None:
    wait_until(lambda: "0 lost" in text(opened, "#lost"), BOUND)
    assert answers(lab, "pod1", addresses("web")[0], kinds=[TCP], times=1) == {"pod2"}

    def seen() -> set[str]:
        return {row[1] for row in rows(opened, "events") if "default/web" in row[4]}

    wait_until(lambda: seen() >= {"opened", "ended"}, BOUND)


def test_a_click_explains(opened: webdriver.Chrome, lab: Lab) -> None:
    # In one step: rows are made anew when something has changed.
    opened.execute_script(
        "[...document.querySelectorAll('#services tbody tr')]"
        ".find((row) => row.textContent.startsWith('default/web:tcp TCPv4')).click()"
    )
    wait_until(lambda: "1 of 1 endpoints used" in text(opened, "#explained"), BOUND)
    pod2 = lab.find("pod2").addresses[0]
    assert f"{pod2}:7000, default/pod2 on node1" in text(opened, "#explained")
    ((where, name, node, serving, _),) = rows(opened, "endpoints")
    assert (where, name, node, serving) == (f"{pod2}:7000", "default/pod2", "this node", "yes")
    field = opened.find_element("css selector", "#from")
    field.clear()
    field.send_keys("default/pod2", "\n")
    wait_until(lambda: "runs on node1" in text(opened, "#explained"), BOUND)
    click(opened, "#close")
    wait_until(
        lambda: opened.execute_script("return document.querySelector('#detail').hidden"), BOUND
    )


def test_finding_and_sorting(opened: webdriver.Chrome) -> None:
    field = opened.find_element("css selector", "#wanted")
    field.send_keys("empty")
    wait_until(lambda: named(opened) == {"default/empty"}, BOUND)
    field.clear()
    field.send_keys("pod2")  # a name of an endpoint
    wait_until(lambda: named(opened) == {"default/web"}, BOUND)
    field.clear()
    field.send_keys(" ")
    wait_until(lambda: named(opened) == {"default/empty", "default/web"}, BOUND)
    click(opened, "[data-sort=name]")
    names = [row[0] for row in rows(opened, "services")]
    assert names == sorted(names)
    assert len(names) > 4


def named(browser: webdriver.Chrome) -> set[str]:
    """The services that are shown, by namespace and name."""
    return {row[0].split(":")[0] for row in rows(browser, "services")}


def test_nothing_is_wrong_and_nothing_else_is_asked(opened: webdriver.Chrome, page: str) -> None:
    """No complaint of the browser about the policy or the scripts; every request goes here."""
    wait_until(lambda: "lost" in text(opened, "#lost"), BOUND)
    said = opened.get_log("browser")  # type: ignore[no-untyped-call] # of the package
    assert [entry for entry in said if entry["level"] in ("SEVERE", "WARNING")] == []

    def asked_for() -> list[str]:
        found: list[str] = opened.execute_script(
            "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        )
        return found

    wait_until(lambda: len(asked_for()) >= 5, BOUND)
    asked = asked_for()
    assert [url for url in asked if not url.startswith(page)] == []


class Other(BaseHTTPRequestHandler):
    """A page of somebody else's."""

    def do_GET(self) -> None:
        body = b"<!doctype html><title>other</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody wants to know."""


def test_a_page_of_another_origin_cannot_read_it(browser: webdriver.Chrome, page: str) -> None:
    """One that is served by another port of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.05,))
        thread.start()
        try:
            browser.get(f"http://127.0.0.1:{other.server_address[1]}/")
            assert browser.title == "other"
            said = browser.execute_async_script(
                "const [page, done] = arguments;"
                "fetch(page + 'api/overview').then(() => done('read'), () => done('refused'))",
                page,
            )
        finally:
            other.shutdown()
            thread.join(10)
    assert said == "refused"


def test_by_another_name_it_answers_nothing(page: str) -> None:
    host = page.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=BOUND)
    connection.request("GET", "/api/overview", headers={"Host": f"attacker.example:{host}"})
    assert connection.getresponse().status == 421
    connection.close()


def test_only_loopback(lab: Lab) -> None:
    done = subprocess.run(
        lbctl_command("ui", "--address", "0.0.0.0", "--pin-dir", str(lab.pin_dir("node1"))),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )
    assert done.returncode == 2
    assert "port-forward" in done.stderr


def test_a_picture(opened: webdriver.Chrome, lab: Lab, tmp_path: Path) -> None:
    """It can be drawn; with LBCTL_PICTURES the pictures of docs/ are made so."""
    directory = pictures.directory(tmp_path)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            sock = stack.enter_context(client(lab, "pod1", 0, TCP))
            sock.connect((addresses("web")[0], PORT))
        wait_until(lambda: "default/pod2:7000 (" in text(opened, "#map"), BOUND)
        assert opened.save_screenshot(str(directory / "page.png"))
    assert (directory / "page.png").stat().st_size > 10_000
