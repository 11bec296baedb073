"""An API server that misbehaves in each way there is: what works goes on, and goes on changing
when the server is itself again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from lbctl.lab import objects
from lbctl.lab.cluster import Lab
from tests.lab.support.api_agent import ApiAgent, Watches, fill
from tests.lab.support.bystanders import STEADY, Bystanders, bystanders, targets
from tests.lab.support.faults import answers_process, lines, served, service
from tests.lab.support.labs import TCP, Responder, addresses, client, endpoint, inside
from tests.lab.support.remote_sockets import process_in
from tests.support.hostile_api import (
    KINDS,
    SERVICES,
    Answer,
    HostileApi,
    Request,
    answers,
    ends,
    error_event,
    goes_on_without_end,
    status,
)
from tests.support.hostile_api import (
    lines as say,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

SERVERS = ("pod2", "pod3")
ASKED_ALSO = 20.0  # seconds within which a failing server is asked again
RECOVERY = 40.0
FRESH = 1_000_000  # a version from the future


def once(answer: Answer) -> Answer:
    """The first request of each kind is answered so, later ones well."""
    seen: set[str] = set()

    def chosen(request: Request) -> None:
        if request.place in seen:
            request.json(200, request.api.page(request.place))
        else:
            seen.add(request.place)
            answer(request)

    return chosen


def page_of(keep: Callable[[int], int], version: int | None = None) -> Answer:
    """A list of the first objects alone, in perfect order otherwise."""

    def answer(request: Request) -> None:
        page = request.api.page(request.place)
        page["items"] = page["items"][: keep(len(page["items"]))]
        if version:
            page["metadata"]["resourceVersion"] = str(version)
        request.json(200, page)

    return answer


def cut_off(request: Request) -> None:
    """The first half of a body, whose length says that there is more."""
    data = msgspec.json.encode(request.api.page(request.place))
    request.raw(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (len(data), data[: len(data) // 2])
    )


PODS = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "5"}, "items": []}
# What answers and events look like to a client of one thread is in unit/test_hostile_api.py, kind
# by kind; here are those that would do harm to traffic.
LISTS: dict[str, Answer] = {
    "another kind": answers(PODS),
    "half a body": cut_off,
    "an empty list once": once(page_of(lambda _: 0)),
    "half of a list once": once(page_of(lambda known: known // 3)),
    "pages without end": goes_on_without_end,
    "an expired token": status(401),
}
NO_OBJECT = b'{"type":"DELETED","object":{"metadata":{"name":"steady","namespace":"default"}}}'
WATCHES: dict[str, Answer] = {
    "410 after 410": error_event(410),
    "breaking off": ends("break"),
    "an event without kind": say(NO_OBJECT),
}


class World:
    """A server with the lab's objects, and the agent that follows it."""

    def __init__(self, lab: Lab, api: HostileApi, directory: Path) -> None:
        self.lab = lab
        self.api = api
        self.watches = Watches()
        self.agent = ApiAgent(lab, api, directory)
        self._turn = itertools.count()
        fill(api, objects.nodes(lab.state.topology))
        fill(api, STEADY.objects(lab, [endpoint(lab, member) for member in SERVERS]))
        # Beside the services with traffic some more, so that a list can lack the most of them.
        for number in range(8):
            fill(api, service(lab, f"more-{number}", ["pod2"]))
        self.behave()

    def behave(self) -> None:
        self.api.lists.clear()
        self.api.watches = dict.fromkeys(KINDS, self.watches.hold())

    def misbehave(self, lists: Answer | None, watches: Answer) -> None:
        """Cut every watch; what the agent asks from now on is answered so."""
        self.api.lists = {} if lists is None else dict.fromkeys(KINDS, lists)
        self.api.watches = dict.fromkeys(KINDS, watches)
        self.watches.cut()

    def wait_asked(self, times: int, since: int) -> None:
        wait_until(
            lambda: self.api.requests[SERVICES] >= since + times,
            ASKED_ALSO,
            lambda: f"{self.api.requests[SERVICES] - since} requests",
        )

    def recovers(self) -> None:
        """A change that the agent can only have from a good answer arrives."""
        self.behave()
        member = f"pod{2 + next(self._turn) % 2}"
        self.api.version += 1
        fill(self.api, service(self.lab, "moving", [member]))
        self.watches.cut()
        self.api.watches = dict.fromkeys(KINDS, self._relist_once())
        self.lab.wait_programmed(
            "default/moving", [endpoint(self.lab, member)], ["node1"], timeout=RECOVERY
        )

    def _relist_once(self) -> Answer:
        """A watch from before the change is too old, as where history is gone."""
        good, late, now = self.watches.hold(), error_event(410), self.api.version

        def answer(request: Request) -> None:
            known = int(request.query.get("resourceVersion") or 0)
            (late if known != now else good)(request)

        return answer

    def served(self) -> dict[str, object]:
        found = served(self.lab, "node1")
        return {name: what for name, what in found.items() if "/moving" not in name}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("fapi", nodes=1, pods=3, agent=False)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        yield made
    made.down()


@pytest.fixture(scope="module")
def world(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The server is a machine outside."""
    with inside(lab, "outside", partial(HostileApi, lab.outside.addresses[0])) as api:
        made = World(lab, api, tmp_path_factory.mktemp("api"))
        made.agent.start()
        try:
            made.agent.wait_ready()
            yield made
        finally:
            made.agent.end()


@pytest.fixture(scope="module")
def traffic(world: World) -> Iterator[Bystanders]:
    with bystanders(world.lab, targets(world.lab, SERVERS)) as made:
        yield made


@pytest.fixture(autouse=True)
def good_again(world: World) -> Iterator[None]:
    """Each test has an agent without faults in its past."""
    world.behave()
    world.agent.restart()
    world.agent.wait_ready()
    yield
    world.watches.cut()


@pytest.mark.parametrize("what", LISTS)
def test_a_running_agent_believes_no_bad_list(world: World, traffic: Bystanders, what: str) -> None:
    before, since = world.served(), world.api.requests[SERVICES]
    world.misbehave(LISTS[what], error_event(410))
    world.wait_asked(3 if "once" in what else 2, since)  # a watch that is refused, then lists
    traffic.unharmed()
    assert world.served() == before
    world.recovers()
    traffic.unharmed()
    assert world.served() == before


@pytest.mark.parametrize("what", ["another kind", "an empty list once"])
def test_an_agent_that_starts_takes_nothing_away(
    world: World, traffic: Bystanders, what: str
) -> None:
    before, since = world.served(), world.api.requests[SERVICES]
    world.agent.end()
    world.misbehave(LISTS[what], world.watches.hold())
    world.agent.start()
    world.wait_asked(2, since)
    traffic.unharmed()
    assert world.served() == before
    world.recovers()
    traffic.unharmed()


@pytest.mark.parametrize("what", WATCHES)
def test_a_running_agent_believes_no_bad_watch(
    world: World, traffic: Bystanders, what: str
) -> None:
    before, since = world.served(), world.api.requests[SERVICES]
    world.misbehave(None, WATCHES[what])
    world.wait_asked(2, since)
    traffic.unharmed()
    assert world.served() == before
    world.recovers()
    traffic.unharmed()


@pytest.mark.parametrize("pace", [0.05, 0.0005], ids=["slow", "fast"])
def test_a_body_without_end_takes_nothing_away(
    world: World, traffic: Bystanders, pace: float
) -> None:
    since = world.api.requests[SERVICES]
    world.misbehave(world.watches.flood(b" " * 1024, pace), error_event(410))
    world.wait_asked(2, since)
    before = world.served()
    for _ in range(4):
        traffic.unharmed()
    assert world.served() == before
    world.watches.cut()
    world.recovers()


def test_a_server_restored_from_a_backup_is_followed(world: World, traffic: Bystanders) -> None:
    """Its versions begin again below what was seen: a watch from there would be silent for ever."""
    fill(world.api, service(world.lab, "moving", ["pod1"]))
    world.api.version = 500
    marks = {
        path: {
            "type": "BOOKMARK",
            "object": {
                "kind": kind,
                "apiVersion": version,
                "metadata": {"resourceVersion": "500"},
            },
        }
        for path, (version, kind) in KINDS.items()
    }
    world.api.watches = {path: world.watches.hold(mark) for path, mark in marks.items()}
    world.watches.cut()
    world.lab.wait_programmed(
        "default/moving", [endpoint(world.lab, "pod1")], ["node1"], timeout=RECOVERY
    )
    traffic.unharmed()
    world.api.version = 2000


def test_a_failing_server_is_not_hammered(
    world: World, traffic: Bystanders, pytestconfig: pytest.Config
) -> None:
    """Faults of every kind after each other, good lists between them: one bound for all."""
    each = 1.5 * pytestconfig.getoption("soak")
    since = dict(world.api.requests)
    begin = time.monotonic()
    for lists, watches in (
        (None, error_event(410)),
        (status(500), error_event(410)),
        (None, ends("break")),
        (goes_on_without_end, ends("end")),
    ):
        world.misbehave(lists, watches)
        traffic.unharmed()
        time.sleep(each)
    took = time.monotonic() - begin
    asked = {path: world.api.requests[path] - since.get(path, 0) for path in KINDS}
    minutes = max(1.0, took / 60)  # a slow machine may take longer than one
    assert all(0 < count < 30 * minutes for count in asked.values()), asked


@pytest.fixture
def way_back(lab: Lab) -> Iterator[None]:
    """The machine outside knows the way to pods, whom nobody masquerades in a lab."""
    node = lab.node("node1")
    routes = [[cidr, "via", by] for cidr, by in zip(node.pod_cidrs, node.addresses, strict=True)]
    for route in routes:
        lab.exec("outside", ["ip", "route", "add", *route], check=True)
    yield
    for route in routes:
        lab.exec("outside", ["ip", "route", "del", *route], check=True)


@pytest.mark.usefixtures("way_back")
def test_nobody_takes_the_api_servers_address(world: World, traffic: Bystanders) -> None:
    """A service asks for it, as external IP and as a load balancer's: the agent, pods and
    processes of the node still reach the server there."""
    host, port = world.api.host, int(world.api.url.rpartition(":")[2])
    ports = [objects.Port(port, 7000, "tcp")]
    spec = {"type": "LoadBalancer", "externalIPs": [host]}
    fill(world.api, service(world.lab, "thief", ["pod3"], ports, spec, ingress=[host]))
    world.recovers()
    wait_until(lambda: any("default/thief" in name for name in world.served()))
    for _ in range(2):
        for member in ("pod1", "node1"):
            assert b" 200 " in asks(world.lab, member, host, port), member
        with process_in(world.lab, "node1") as process:
            sock = process.connect(TCP, host, port)
            sock.send("GET /api/v1/nodes HTTP/1.0\r\n\r\n")
            assert " 200 " in sock.recv(100)
            sock.close()
        world.agent.restart()
        world.agent.wait_ready()
        world.recovers()
    assert lines(world.lab, "node1", "default/thief", host)
    with process_in(world.lab, "node1") as process:
        assert answers_process(process, addresses("thief")[0], port) >= {"pod3"}
    world.api.items[SERVICES] = [
        item for item in world.api.items[SERVICES] if item["metadata"]["name"] != "thief"
    ]


def asks(lab: Lab, member: str, host: str, port: int) -> bytes:
    """The first line of what a server answers to a request."""
    with client(lab, member, 0, TCP) as sock:
        sock.connect((host, port))
        sock.sendall(b"GET /api/v1/nodes HTTP/1.0\r\n\r\n")
        return sock.recv(100)
