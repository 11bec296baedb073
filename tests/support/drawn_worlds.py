"""Random clusters as vectors: services of every kind, in odd combinations, on one node.

What is drawn is always something an API server could return; where the documents leave an answer
open (two running endpoints at one address that contradict each other, two services at one address)
nothing is drawn. What the answers are says plain_rules.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tests.support.vector_files import Json

NODE = "worker-1"
OTHERS = ("worker-2", "worker-3")
ADDRESSES = {4: ("192.168.0.2", "192.168.1.2"), 6: ("fd00:168::2", "fd00:168:1::2")}
POD_RANGES = "10.0.0.0/8,fd00:10::/32"
SERVICE_RANGES = ["172.30.0.0/24", "fd00:30::/112"]
SOURCES = {
    4: ("10.0.0.7", "10.0.9.9", "192.168.0.2", "203.0.113.2", "198.51.100.5"),
    6: ("fd00:10::7", "fd00:10::9:9", "fd00:168::2", "2001:db8::2", "2001:db8:1::5"),
}
RANGES = (
    "203.0.113.0/25",
    " 198.51.100.0/24 ",
    "10.0.0.0/24",
    "192.168.0.2/32",
    "0.0.0.0/0",
    "2001:db8::/64",
    " fd00:10::/112",
    "::/0",
)
_ZONES = ("zone-a", "zone-b")
_NAMES = ("http", "dns", "metrics")
_TYPES = ("ClusterIP", "NodePort", "LoadBalancer")
_FORMATS = {4: "{}.{}.0.{}", 6: "fd00:{}:{}::{}"}


def node(random: Random) -> Json:
    """The node that is asked, as a vector has it."""
    return {
        "name": NODE,
        "internal_ips": [ADDRESSES[4][0], ADDRESSES[6][0]],
        "local_ips": [*ADDRESSES[4], *ADDRESSES[6]],
        "cluster_cidr": random.choice([POD_RANGES, POD_RANGES, None]),
        "nodeport_addresses": random.choice(
            [
                None,
                ["192.168.1.0/24"],
                ["0.0.0.0/0"],
                ["fd00:168:1::/64", "192.168.0.0/16"],
                ["10.9.0.0/16", "::/0"],
            ]
        ),
        "service_cidrs": random.choice([[], SERVICE_RANGES]),
        "masquerade_all": random.random() < 0.2,
    }


def objects(random: Random) -> list[Json]:
    """The node, and a handful of services with their slices, in any order."""
    zone = random.choice([*_ZONES, None])
    found = [_node_object(zone)]
    for number in range(1, random.randint(2, 6)):
        service = _service(random, number)
        found.append(service)
        found += _slices(random, service, number, zone)
    if random.random() < 0.2:
        found.append(_alias())
    random.shuffle(found)
    return found


def _node_object(zone: str | None) -> Json:
    inner = [{"type": "InternalIP", "address": a[0]} for a in ADDRESSES.values()]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": zone} if zone else {}},
        "spec": {},
        "status": {"addresses": [*inner, {"type": "Hostname", "address": NODE}]},
    }


def _alias() -> Json:
    """A service that is a name for another, with the address it had before that."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "alias", "namespace": "ns1", "labels": {}, "annotations": {}},
        "spec": {
            "type": "ExternalName",
            "externalName": "svc1.example",
            "clusterIP": "",
            "externalIPs": ["50.60.80.1"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    }


def _maybe(random: Random, chance: float, fields: Json) -> Json:
    return fields if random.random() < chance else {}


def _service(random: Random, number: int) -> Json:
    families = random.choice([[4], [6], [4, 6], [6, 4]])
    kind = random.choice(_TYPES)
    ports = _ports(random, number, kind)
    ips = [
        _FORMATS[f].format(*((172, 30, number) if f == 4 else (30, 0, number))) for f in families
    ]
    if random.random() < 0.06:
        ips, kind = ["None"], "ClusterIP"
    spec: Json = {
        "type": kind,
        "clusterIP": ips[0],
        "clusterIPs": ips,
        "ipFamilies": [f"IPv{f}" for f in families],
        "ports": ports,
        **_maybe(random, 0.3, {"sessionAffinity": "ClientIP"}),
        **_maybe(random, 0.4, {"internalTrafficPolicy": random.choice(["Local", "Cluster"])}),
        **_maybe(random, 0.2, {"publishNotReadyAddresses": True}),
        **_maybe(random, 0.3, {"trafficDistribution": "PreferSameZone"}),
        **_maybe(random, 0.4, {"externalIPs": random.sample(_outer(number, "50", 0), 2)}),
    }
    if kind != "ClusterIP" or spec.get("externalIPs"):
        spec |= _maybe(random, 0.5, {"externalTrafficPolicy": "Local"})
    metadata: Json = {"name": f"svc{number}", "namespace": random.choice(["ns1", "ns2"])}
    metadata["labels"] = _maybe(
        random, 0.06, {"service.kubernetes.io/service-proxy-name": "another"}
    )
    metadata["annotations"] = _maybe(random, 0.25, {"lbctl/algorithm": _algorithm(random)})
    metadata["annotations"] |= _maybe(random, 0.25, {"lbctl/near": random.choice(["node", "zone"])})
    value = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    return value | (_balancer(random, number, spec) if kind == "LoadBalancer" else {})


def _algorithm(random: Random) -> str:
    return random.choice(["random", "round-robin", "least-connections", "maglev"])


def _ports(random: Random, number: int, kind: str) -> list[Json]:
    names = random.sample(_NAMES, random.randint(1, 3))
    ports = []
    for place, name in enumerate(names):
        port: Json = {
            "name": name,
            "port": 80 + 10 * number + place,
            "targetPort": random.choice([8080, name]),
        }
        port |= random.choice([{"protocol": "TCP"}, {"protocol": "UDP"}, {}])
        if kind == "NodePort" or (kind == "LoadBalancer" and random.random() < 0.7):
            port["nodePort"] = random.choice([30000, 32700]) + number + 10 * (place + 1)
        ports.append(port)
    if len(names) == 1 and random.random() < 0.4:
        ports[0].pop("name")
    if len(ports) > 1 and random.random() < 0.3:  # one number, two protocols
        ports[1] |= {"port": ports[0]["port"], "protocol": "SCTP"}
    return ports


def _outer(number: int, first: str, own: int) -> list[str]:
    """Addresses of a service's own, one that services share, and some of the node."""
    mine = [f"{first}.60.70.{number}", f"fd00:{first}::{number}"]
    return [*mine, f"{first}.60.99.1", ADDRESSES[4][own], ADDRESSES[6][own]]


def _balancer(random: Random, number: int, spec: Json) -> Json:
    """Adds to the spec what load balancers have there, and returns the status."""
    spec |= _maybe(random, 0.4, {"loadBalancerSourceRanges": random.sample(RANGES, 2)})
    spec |= _maybe(random, 0.3, {"loadBalancerIP": f"9.9.9.{number}"})
    if spec.get("externalTrafficPolicy") == "Local":
        spec["healthCheckNodePort"] = 31900 + number
    if not any("nodePort" in port for port in spec["ports"]):
        spec["allocateLoadBalancerNodePorts"] = False
    modes = [{}, {"ipMode": "VIP"}, {"ipMode": "Proxy"}]
    entries: list[Json] = [{"ip": ip, **random.choice(modes)} for ip in _outer(number, "60", 1)]
    entries.append({"hostname": "lb.example"})
    return {"status": {"loadBalancer": {"ingress": random.sample(entries, random.randint(0, 3))}}}


def _slices(random: Random, service: Json, number: int, zone: str | None) -> list[Json]:
    """Some of each family, also of those that the service does not have; with repetitions, ports
    that nobody asked for, and ports without a number."""
    meta = service["metadata"]
    found: list[Json] = []
    for family in (4, 6):
        pool = [
            _endpoint(random, family, number, host, zone) for host in range(1, random.randint(2, 6))
        ]
        for part in range(random.randint(0, 3)):
            weight = {"lbctl/weight": str(100 * part)} if random.random() < 0.15 else {}
            listed = [e for e in pool if not weight] if part else pool
            chosen = random.sample(listed, random.randint(0, len(listed)))
            if weight:  # endpoints of their own: what two weights of one mean is nowhere said
                chosen = [_endpoint(random, family, number, 100 + 10 * part, zone)]
            found.append(
                {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "name": f"{meta['name']}-{family}-{part}",
                        "namespace": meta["namespace"],
                        "labels": {"kubernetes.io/service-name": meta["name"]},
                        "annotations": weight,
                    },
                    "addressType": f"IPv{family}",
                    "endpoints": [_repeated(random, value) for value in chosen],
                    "ports": _slice_ports(random, service["spec"]["ports"]),
                }
            )
    if found and random.random() < 0.2:  # another namespace's, of the same name
        found.append({**found[0], "metadata": {**found[0]["metadata"], "namespace": "ns3"}})
    return found


def _slice_ports(random: Random, ports: Sequence[Json]) -> list[Json]:
    """A named target port has other numbers in other slices."""
    found: list[Json] = []
    for port in ports:
        target = port["targetPort"] if port["targetPort"] == 8080 else random.choice([8081, 8082])
        value: Json = {k: port[k] for k in ("name", "protocol") if k in port}
        value |= _maybe(random, 0.5, {"name": value.get("name", "")})
        value |= _maybe(random, 0.95, {"port": target})
        found += [] if random.random() < 0.1 else [value]
    return [*found, {"name": "nobody-asked", "port": 9999, "protocol": "TCP"}]


def _endpoint(random: Random, family: int, number: int, host: int, zone: str | None) -> Json:
    value: Json = {
        "addresses": [_FORMATS[family].format(10, number, host)],
        "conditions": random.choice(
            [
                {},
                {"ready": True},
                {"ready": True, "serving": True, "terminating": False},
                {"ready": False},
                {"ready": False, "serving": True, "terminating": False},
                {"ready": False, "serving": True, "terminating": True},
                {"ready": False, "serving": True, "terminating": True},
                {"ready": False, "serving": False, "terminating": True},
                {"ready": True, "serving": True, "terminating": True},
            ]
        ),
    }
    value |= random.choice([{"nodeName": NODE}, {"nodeName": random.choice(OTHERS)}, {}])
    value |= random.choice([{}, {"zone": random.choice(_ZONES)}])
    if value.get("nodeName") == NODE:
        value["zone"] = zone
    hints: Json = _maybe(random, 0.8, {"forZones": [{"name": random.choice(_ZONES)}]})
    hints |= _maybe(random, 0.5, {"forNodes": [{"name": random.choice([NODE, "worker-2"])}]})
    return value | ({"hints": hints} if hints else {})


def _repeated(random: Random, value: Json) -> Json:
    """As it is, or what the pod before it at the same address left behind: terminating, and not
    ready. Only of endpoints that run is that drawn, since of two that terminate either may win."""
    runs = not value["conditions"].get("terminating")
    if not runs or random.random() < 0.85:
        return value
    return {**value, "conditions": {"ready": False, "serving": True, "terminating": True}}
