"""Which endpoint a new flow gets: by each algorithm, by weight, by nearness, by how busy it is."""

from collections import Counter

import pytest

from lbctl.datapath.likelihood import odds
from lbctl.datapath.regions import table_places
from tests.kernel.support import balancing, model
from tests.kernel.support.balancing import FLAT, chi_square, chosen, endpoints, serve, set_live
from tests.kernel.support.conversation import CLIENT, PORT, SERVICE, Conversation
from tests.kernel.support.packets import Shape
from tests.kernel.support.world import Service, World

pytestmark = pytest.mark.kernel

TCP4, UDP6 = Shape(4, "tcp"), Shape(6, "udp")
BOTH = [TCP4, UDP6]
PORTS = range(20000, 23000)
ALGORITHMS = ["random", "round-robin", "least-connections", "maglev", "source-hash"]
# Of maglev and source-hash the table is uneven by up to a third; of the others, nothing is.
EVEN = ["random", "round-robin", "least-connections"]
MANY = 10**6  # live flows, beside which those that a test opens and the programs count are nothing


def some(world: World, shape: Shape, service: Service, count: int = 3000) -> Counter[str]:
    return Counter(chosen(world, shape, service, PORTS[:count], [CLIENT[shape.family]]))


def addresses(service: Service) -> list[str]:
    return [address for address, _ in service.backends]


def clients(family: int, count: int) -> list[str]:
    text = "10.1.%d.%d" if family == 4 else "fd00:1::%d:%d"
    return [text % (1 + number // 200, 1 + number % 200) for number in range(count)]


@pytest.mark.parametrize("shape", BOTH, ids=str)
@pytest.mark.parametrize("algorithm", EVEN)
def test_without_weights_all_are_alike(world: World, shape: Shape, algorithm: str) -> None:
    service = serve(world, shape, algorithm=algorithm)
    seen = some(world, shape, service)
    assert chi_square(seen, dict.fromkeys(addresses(service), 1)) < FLAT


@pytest.mark.parametrize("shape", BOTH, ids=str)
@pytest.mark.parametrize("algorithm", ["random", "round-robin"])
def test_weights(world: World, shape: Shape, algorithm: str) -> None:
    service = serve(world, shape, algorithm=algorithm)
    wanted = dict(zip(service.backends, (100, 0, 300, 50, 1000, 100), strict=True))
    balancing.weigh(world, service, wanted)
    seen = some(world, shape, service)
    assert chi_square(seen, {address: w for (address, _), w in wanted.items()}) < FLAT


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_weight_0_gets_nothing(world: World, algorithm: str) -> None:
    service = serve(world, TCP4, algorithm=algorithm)
    none = list(service.backends)[2]
    balancing.weigh(world, service, {none: 0})
    if algorithm in ("maglev", "source-hash"):
        balancing.tabulate(world, service, {none: 0})
    seen = Counter(chosen(world, TCP4, service, PORTS[:100], clients(4, 30)))
    assert seen.keys() == {*addresses(service)} - {none[0]}


def test_if_all_have_weight_0_it_is_refused(world: World) -> None:
    service = serve(world, TCP4)
    word = int(world.array("services").records["cluster"][service.id])
    world.array("services").store_word(service.id, "cluster", word | world.flag("REGION_CLOSED"))
    outcome = world.from_pod(Conversation(world, TCP4, service).request())
    assert outcome.reasons == {"no_endpoint": 1}


# Round robin


def test_turns_are_taken_exactly(world: World) -> None:
    service = serve(world, TCP4, algorithm="round-robin")
    order = chosen(world, TCP4, service, PORTS[:60], [CLIENT[4]])
    assert order == [address for address, _ in service.backends] * 10


def test_turns_of_weights_are_spread_evenly(world: World) -> None:
    """In any stretch, each has about its part: never two in a row more than its weight asks for."""
    service = serve(world, TCP4, count=2, algorithm="round-robin")
    (first, second) = service.backends
    balancing.weigh(world, service, {first: 300, second: 100})
    order = chosen(world, TCP4, service, PORTS[:800], [CLIENT[4]])
    for start in range(0, 800, 40):
        assert 8 <= order[start : start + 40].count(second[0]) <= 12


# Least connections


@pytest.mark.parametrize("shape", BOTH, ids=str)
def test_the_less_busy_of_two(world: World, shape: Shape) -> None:
    """The busiest of six is in no pair the less busy one; the idlest in a third of all."""
    service = serve(world, shape, algorithm="least-connections")
    set_live(world, service, {e: MANY * n for n, e in enumerate(service.backends, 1)})
    seen = some(world, shape, service)
    # Pairs of six, of which the less busy is chosen: 5, 4, 3, 2, 1, 0 of 15.
    wanted = {address: 5 - n for n, (address, _) in enumerate(service.backends)}
    assert chi_square(seen, wanted) < FLAT


def test_of_two_it_is_always_the_less_busy(world: World) -> None:
    service = serve(world, TCP4, count=2, algorithm="least-connections")
    busy, idle = service.backends
    set_live(world, service, {busy: 1000, idle: 800})
    assert some(world, TCP4, service, 200) == {idle[0]: 200}


def test_new_flows_make_busy(world: World) -> None:
    """The programs count what they open, and choose by it at once."""
    service = serve(world, TCP4, count=2, algorithm="least-connections")
    busy, idle = service.backends
    set_live(world, service, {busy: 10, idle: 8})
    assert some(world, TCP4, service, 202) == {busy[0]: 100, idle[0]: 102}


def test_flows_that_end_make_idle(world: World) -> None:
    service = serve(world, TCP4, count=2, algorithm="least-connections")
    first, second = service.backends
    set_live(world, service, {first: MANY})
    assert some(world, TCP4, service, 50) == {second[0]: 50}
    set_live(world, service, {first: 10})
    assert some(world, TCP4, service, 60)[second[0]] == 50  # those that are there; the rest is new
    world.forget_flows()
    live = world.array("backend_live").records
    assert [live[number] for number in service.backends.values()] == [10, 0]
    assert some(world, TCP4, service, 10) == {second[0]: 10}


def test_busy_is_by_weight(world: World) -> None:
    service = serve(world, TCP4, count=2, algorithm="least-connections")
    strong, weak = service.backends
    balancing.weigh(world, service, {strong: 300, weak: 100})
    set_live(world, service, {strong: 2 * MANY, weak: MANY})
    assert some(world, TCP4, service, 200) == {strong[0]: 200}
    # The weak one is less busy by weight now, and is drawn as often as its weight says, twice.
    set_live(world, service, {strong: 4 * MANY, weak: MANY})
    seen = some(world, TCP4, service, 2000)
    assert 0.40 < seen[weak[0]] / 2000 < 0.60


def test_one_endpoint_is_chosen_though_it_is_busy(world: World) -> None:
    service = serve(world, TCP4, count=1, algorithm="least-connections")
    (only,) = service.backends
    set_live(world, service, {only: 1000})
    assert some(world, TCP4, service, 10) == {only[0]: 10}


# By hash


@pytest.mark.parametrize("shape", BOTH, ids=str)
def test_maglev_goes_by_client_and_port(world: World, shape: Shape) -> None:
    service = serve(world, shape, algorithm="maglev")
    callers = clients(shape.family, 20)
    first = chosen(world, shape, service, PORTS[:100], callers)
    world.forget_flows()
    assert chosen(world, shape, service, PORTS[:100], callers) == first
    assert Counter(first[:100]).keys() == {*addresses(service)}
    # Places of the table are drawn from evenly; how many each has, the table says.
    places = table_places(world.array("hash_tables").records)[:1024]
    numbers = {number: address for (address, _), number in service.backends.items()}
    parts = Counter(numbers[int(number)] for number in places)
    assert chi_square(Counter(first), parts) < FLAT


def test_maglev_is_the_same_at_every_address_that_shares_the_port(world: World) -> None:
    """Nodes are called by their own addresses at a node port."""
    service = world.add_service(
        [SERVICE[4], "198.51.100.7"], PORT, "tcp", endpoints(4), cluster_ip=True
    )
    balancing.choose_by(world, service, "maglev")
    found = []
    for address in service.addresses:
        service.addresses = (address,)
        found.append(chosen(world, TCP4, service, PORTS[:200], [CLIENT[4]]))
    assert found[0] == found[1]


@pytest.mark.parametrize("shape", BOTH, ids=str)
def test_source_hash_goes_by_the_client_alone(world: World, shape: Shape) -> None:
    service = serve(world, shape, algorithm="source-hash")
    callers = clients(shape.family, 100)
    order = chosen(world, shape, service, PORTS[:5], callers)
    each = [set(order[start : start + 5]) for start in range(0, 500, 5)]
    assert all(len(found) == 1 for found in each)
    assert set().union(*each) == {*addresses(service)}


@pytest.mark.parametrize("algorithm", ["maglev", "source-hash"])
def test_without_a_table_it_is_by_chance(world: World, algorithm: str) -> None:
    service = serve(world, TCP4, algorithm=algorithm)
    world.array("services").store_word(service.id, "cluster_table", 0)
    seen = some(world, TCP4, service)
    assert chi_square(seen, dict.fromkeys(addresses(service), 1)) < FLAT


# TCP in mid-stream


def midstream(world: World, service: Service) -> list[dict[str, int]]:
    """What becomes of a packet of a connection that another node had, and of the next one."""
    talk = Conversation(world, TCP4, service, sport=43210)
    return [world.from_pod(talk.request(flags, b"x")).reasons for flags in ("A", "PA")]


def test_maglev_carries_on_what_another_node_had(world: World) -> None:
    service = serve(world, TCP4, algorithm="maglev")
    talk = Conversation(world, TCP4, service, sport=43210)
    talk.up()
    before = talk.backend
    world.forget_flows()  # this is the other node now
    outcome = world.from_pod(talk.request("A", b"more"))
    assert outcome.reasons == {"forwarded": 1}
    assert before
    assert model.tuple_of(outcome.frame).dst == model.packed(before[0])
    talk.down("A", b"answer")
    assert world.from_pod(talk.request("A")).reasons == {}


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a != "maglev"])
def test_others_do_not(world: World, algorithm: str) -> None:
    assert midstream(world, serve(world, TCP4, algorithm=algorithm))[0] == {"no_flow_reset": 1}


def test_not_what_kube_proxy_may_own(world: World) -> None:
    service = serve(world, TCP4, algorithm="maglev")
    world.configure(flags=world.flag("CONFIG_PASS_MIDSTREAM"))
    assert midstream(world, service)[0] == {"no_flow_passed": 1}


def test_a_reset_is_not_worth_a_flow(world: World) -> None:
    service = serve(world, TCP4, algorithm="maglev")
    outcome = world.from_pod(Conversation(world, TCP4, service).request("R"))
    assert outcome.reasons == {"no_flow_reset": 1}
    assert world.flows(4) == []


def test_at_an_address_of_the_nodes_it_carries_on_too(world: World) -> None:
    service = world.add_service("198.51.100.7", PORT, "tcp", endpoints(4), shared=True)
    assert midstream(world, service)[0] == {"left_to_stack": 1}
    balancing.choose_by(world, service, "maglev")
    assert midstream(world, service) == [{"forwarded": 1}, {}]


# Near first


@pytest.mark.parametrize("algorithm", EVEN)
def test_near_ones_are_taken_until_they_are_busier(world: World, algorithm: str) -> None:
    service = serve(world, TCP4, algorithm=algorithm)
    balancing.near_first(world, service, 2, 1.5)
    order = list(service.backends)
    near = {address for address, _ in order[:2]}
    ports = iter(PORTS)
    for busy, taken in ((0, True), (9, True), (13, True), (14, True), (15, False), (100, False)):
        # With one more: (14 + 1) is 1.5 times (9 + 1), and (15 + 1) is more.
        for _ in range(100):
            set_live(world, service, dict.fromkeys(order, 9) | dict.fromkeys(order[:2], busy))
            (address,) = chosen(world, TCP4, service, [next(ports)], [CLIENT[4]])
            assert (address in near) == taken


@pytest.mark.parametrize("algorithm", EVEN)
def test_new_flows_spill_over_as_they_make_busy(world: World, algorithm: str) -> None:
    """Two near ones end with twice as many each as four others, if none is chosen unevenly."""
    service = serve(world, TCP4, algorithm=algorithm)
    balancing.near_first(world, service, 2, 2)
    seen = some(world, TCP4, service)
    near = sum(seen[address] for address in addresses(service)[:2])
    assert 0.45 < near / 3000 < 0.55


def test_the_rest_is_as_busy_as_whom_it_is_compared_with(world: World) -> None:
    """One of the four others is idle: a quarter of what is new goes there."""
    service = serve(world, TCP4)
    balancing.near_first(world, service, 2, 2)
    order = list(service.backends)
    set_live(world, service, dict.fromkeys(order, 4 * MANY) | {order[4]: MANY})
    seen = some(world, TCP4, service)
    parts = dict(zip(addresses(service), (3 / 8, 3 / 8, 0, 0, 1 / 4, 0), strict=True))
    assert chi_square(seen, parts) < FLAT


def test_near_is_by_weight_in_itself(world: World) -> None:
    service = serve(world, TCP4)
    balancing.near_first(world, service, 2, 2)
    order = list(service.backends)
    balancing.weigh(world, service, {order[0]: 300}, near=2)
    set_live(world, service, dict.fromkeys(order, MANY))
    seen = some(world, TCP4, service)
    parts = dict(zip(addresses(service), (3, 1, 0, 0, 0, 0), strict=True))
    assert chi_square(seen, parts) < FLAT


# What people are told


@pytest.mark.parametrize("near", [0, 2])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_odds_are_what_happens(world: World, algorithm: str, near: int) -> None:
    """What `service show` and `trace` compute, against the programs."""
    service = serve(world, TCP4, algorithm=algorithm)
    order = list(service.backends)
    if near:
        balancing.near_first(world, service, near, 1.5)
    weights = dict(zip(order, (100, 50, 300, 100, 100, 0), strict=True))
    balancing.weigh(world, service, weights, near)
    if algorithm in ("maglev", "source-hash"):
        balancing.tabulate(world, service, weights)
    live = (40 * MANY, 10 * MANY, 50 * MANY, 2 * MANY, 20 * MANY, 0)
    set_live(world, service, dict(zip(order, live, strict=True)))
    expected = odds(balancing.tables(world), service.id, "cluster")
    assert sum(expected.values()) == pytest.approx(1)
    callers = clients(4, 1000 if algorithm == "source-hash" else 1)
    ports = PORTS[: 3000 // len(callers)]
    seen = Counter(chosen(world, TCP4, service, ports, callers))
    by_address = {address: expected[number] for (address, _), number in service.backends.items()}
    assert chi_square(seen, by_address) < FLAT


# While traffic runs


def test_flows_stay_where_they_are_whatever_is_changed(world: World) -> None:
    service = serve(world, TCP4)
    talks = [Conversation(world, TCP4, service, sport=port) for port in range(31000, 31040)]
    for talk in talks:
        talk.up()
    for algorithm in (*ALGORITHMS, "random"):
        balancing.choose_by(world, service, algorithm)
        balancing.weigh(world, service, {next(iter(service.backends)): 0})
        for talk in talks:
            talk.up("A", b"on")  # asserts that it is the same backend
            talk.down("A", b"and back")


def test_affinity_does_not_lead_to_weight_0(world: World) -> None:
    service = serve(world, TCP4)
    record = world.array("services").records[service.id : service.id + 1]
    record["flags"] |= world.flag("SERVICE_AFFINITY")
    record["affinity"] = 1000
    (had,) = some(world, TCP4, service, 50)
    number = next(n for (address, _), n in service.backends.items() if address == had)
    world.array("backends").records["flags"][number] |= world.flag("BACKEND_CLOSED")
    endpoint = next(e for e in service.backends if e[0] == had)
    balancing.weigh(world, service, {endpoint: 0})
    world.forget_flows()
    (has,) = some(world, TCP4, service, 50)
    assert has != had
