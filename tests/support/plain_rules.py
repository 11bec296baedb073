"""What a node does with a new connection, by the rules' own words, in JSON: a second opinion.

Written from Kubernetes' documentation of Services and the README of the shared vectors, one rule
after the other and without a thought for speed. It shares no code with what it judges.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.vector_files import Json

Place = tuple[str, int]  # an address and a port
_PROXY = "service.kubernetes.io/service-proxy-name"
_UNMOVED = ("maglev", "source-hash")  # algorithms to which nearness means nothing


class Frontend(NamedTuple):
    """One address of one port of a service."""

    service: Json
    port: Json
    kind: str  # cluster, node, external, balancer


class World:
    """A node and the objects it sees."""

    def __init__(self, node: Json, objects: list[Json], algorithm: str = "random") -> None:
        self._node, self._algorithm = node, algorithm
        self.knows_pods = bool(node["cluster_cidr"])
        self._services = [o for o in objects if o["kind"] == "Service"]
        self._slices = [o for o in objects if o["kind"] == "EndpointSlice"]
        self._zone = next(
            (
                o["metadata"]["labels"].get("topology.kubernetes.io/zone")
                for o in objects
                if o["kind"] == "Node" and o["metadata"]["name"] == node["name"]
            ),
            None,
        )
        self.frontends: dict[tuple[str, int, str], Frontend] = {}
        for service in filter(_is_ours, self._services):
            for port in service["spec"]["ports"]:
                for address, number, kind in self._addresses(service, port):
                    self.frontends[address, number, _protocol(port)] = Frontend(service, port, kind)

    # Addresses.

    def _addresses(self, service: Json, port: Json) -> Iterator[tuple[str, int, str]]:
        spec = service["spec"]
        families = {int(name[-1]) for name in spec["ipFamilies"]}
        for address in spec["clusterIPs"]:
            yield address, port["port"], "cluster"
        for address in spec.get("externalIPs") or ():
            if _family(address) in families:
                yield address, port["port"], "external"
        balancers = service.get("status", {}).get("loadBalancer", {}).get("ingress") or ()
        for entry in balancers if spec["type"] == "LoadBalancer" else ():
            if (
                "ip" in entry
                and entry.get("ipMode") != "Proxy"
                and _family(entry["ip"]) in families
            ):
                yield entry["ip"], port["port"], "balancer"
        for address in self._node_port_addresses() if port.get("nodePort") else ():
            if _family(address) in families:
                yield address, port["nodePort"], "node"

    def _node_port_addresses(self) -> Iterator[str]:
        listed = self._node["nodeport_addresses"]
        if listed is None:
            yield from self._node["internal_ips"]
            return
        networks = [ipaddress.ip_network(text) for text in listed]
        for address in self._node["local_ips"]:
            same = [n for n in networks if n.version == _family(address)]
            if not same or any(ipaddress.ip_address(address) in n for n in same):
                yield address

    # Endpoints.

    def _endpoints(self, service: Json, port: Json, family: int) -> dict[Place, Json]:
        """All that the slices name, with the weight of their slice; what runs beats what ends."""
        found: dict[Place, Json] = {}
        for part in self._slices_of(service, family):
            for target in part["ports"]:
                fits = target.get("name", "") == port.get("name", "")
                if "port" not in target or not fits or _protocol(target) != _protocol(port):
                    continue
                weight = int(part["metadata"]["annotations"].get("lbctl/weight", 100))
                for value in part["endpoints"]:
                    place = (value["addresses"][0], target["port"])
                    if place not in found or not _is(value, "terminating", False):
                        found[place] = {**value, "weight": weight}
        return found

    def _slices_of(self, service: Json, family: int) -> Iterator[Json]:
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        for part in self._slices:
            meta = part["metadata"]
            owner = meta["namespace"], meta["labels"]["kubernetes.io/service-name"]
            if owner == (namespace, name) and part["addressType"] == f"IPv{family}":
                yield part

    def _is_local(self, value: Json) -> bool:
        return bool(value.get("nodeName") == self._node["name"])

    def _by_hints(self, ready: dict[Place, Json]) -> dict[Place, Json]:
        for field, wanted in (("forNodes", self._node["name"]), ("forZones", self._zone)):
            hints = {
                place: [h["name"] for h in value.get("hints", {}).get(field, ())]
                for place, value in ready.items()
            }
            here = {place: ready[place] for place, names in hints.items() if wanted in names}
            if wanted and here and all(hints.values()):
                return here
        return ready

    def cluster_set(self, service: Json, port: Json, family: int) -> dict[Place, Json]:
        found = self._endpoints(service, port, family)
        ready = _ready(found)
        return self._by_hints(ready) if ready else _draining(found)

    def local_set(self, service: Json, port: Json, family: int) -> dict[Place, Json]:
        found = self._endpoints(service, port, family)
        here = {place: value for place, value in found.items() if self._is_local(value)}
        return _ready(here) or _draining(here)

    def _chosen_from(self, service: Json, usable: dict[Place, Json]) -> dict[Place, Json]:
        """Those that a first flow can get, by weights and nearness."""
        weighed = {place: value for place, value in usable.items() if value["weight"]}
        annotations = service["metadata"]["annotations"]
        near = annotations.get("lbctl/near")
        if annotations.get("lbctl/algorithm", self._algorithm) in _UNMOVED or not near:
            return weighed
        close = {
            place: value
            for place, value in weighed.items()
            if (self._is_local(value) if near == "node" else value.get("zone") == self._zone)
        }
        return (close if self._zone or near == "node" else None) or weighed

    # Flows.

    def source_kind(self, source: str) -> str:
        if source in self._node["local_ips"]:
            return "node"
        inside = _inside(source, (self._node["cluster_cidr"] or "").split(","))
        return "pod" if inside else "outside"

    def answer(self, source: str, address: str, number: int, protocol: str) -> Json:
        found = self.frontends.get((address, number, protocol))
        if not found:
            return _verdict(self._unserved(address))
        service, port, kind = found
        if kind == "balancer" and not self._admitted(service, source, address):
            return _verdict("drop")
        family = _family(address)
        cluster = self.cluster_set(service, port, family)
        local = self.local_set(service, port, family)
        usable = local if self._goes_local(service, kind, source) else cluster
        if not usable:
            return _verdict("drop" if cluster else "reject")
        chosen = self._chosen_from(service, usable)
        if not chosen:
            return _verdict("reject")
        return {
            "verdict": "forward",
            "backends": [_place(p) for p in sorted(chosen)],
            "masquerade": self._masqueraded(service, kind, source, chosen),
        }

    def _goes_local(self, service: Json, kind: str, source: str) -> bool:
        if kind == "cluster":
            return bool(service["spec"].get("internalTrafficPolicy") == "Local")
        local = service["spec"].get("externalTrafficPolicy") == "Local"
        return local and self.source_kind(source) == "outside"

    def _masqueraded(
        self, service: Json, kind: str, source: str, chosen: dict[Place, Json]
    ) -> bool:
        """As kube-proxy does it. That not all of it has to be is the vectors' README's to say."""
        if any(address == source for address, _ in chosen):
            return True
        pod = self.source_kind(source) == "pod"
        if kind == "cluster":
            known = bool(self._node["cluster_cidr"])
            return bool(self._node["masquerade_all"]) or (known and not pod)
        if service["spec"].get("externalTrafficPolicy") == "Local":
            return self.source_kind(source) == "node"
        return True

    def _admitted(self, service: Json, source: str, address: str) -> bool:
        ranges = [text.strip() for text in service["spec"].get("loadBalancerSourceRanges") or ()]
        family = _family(address)
        mine = [text for text in ranges if ipaddress.ip_network(text).version == family]
        node = next(a for a in self._node["internal_ips"] if _family(a) == family)
        own = source == address and _inside(node, mine)
        return not mine or _inside(source, mine) or own

    def _unserved(self, address: str) -> str:
        for service in self._services:
            if address in service["spec"].get("clusterIPs", ()):
                return "reject" if _is_ours(service) else "pass"
            if not _is_ours(service) and address in service["spec"].get("externalIPs", ()):
                return "pass"
        return "drop" if _inside(address, self._node["service_cidrs"]) else "pass"

    # Health checks.

    def health_checks(self) -> dict[str, tuple[int, int]]:
        """The port of every service that has one, and the ready local addresses it counts."""
        found = {}
        for service in filter(_is_ours, self._services):
            spec, meta = service["spec"], service["metadata"]
            local = spec.get("externalTrafficPolicy") == "Local"
            if spec["type"] == "LoadBalancer" and local and spec.get("healthCheckNodePort"):
                counts = [self._ready_here(service, int(f[-1])) for f in spec["ipFamilies"]]
                key = f"{meta['namespace']}/{meta['name']}"
                found[key] = (spec["healthCheckNodePort"], max(counts))
        return found

    def _ready_here(self, service: Json, family: int) -> int:
        addresses = set()
        for port in service["spec"]["ports"]:
            found = self._endpoints(service, port, family)
            ready = (p for p, value in _ready(found).items() if self._is_local(value))
            addresses |= {address for address, _ in ready}
        return len(addresses)


def _is_ours(service: Json) -> bool:
    """Not headless, no alias, not another proxy's."""
    spec = service["spec"]
    if spec["type"] == "ExternalName" or _PROXY in service["metadata"]["labels"]:
        return False
    return bool(spec["clusterIP"] != "None")


def _protocol(port: Json) -> str:
    return str(port.get("protocol", "TCP"))


def _is(value: Json, condition: str, unset: bool) -> bool:
    found = value["conditions"].get(condition)
    return unset if found is None else bool(found)


def _ready(found: dict[Place, Json]) -> dict[Place, Json]:
    return {place: value for place, value in found.items() if _is(value, "ready", True)}


def _draining(found: dict[Place, Json]) -> dict[Place, Json]:
    return {
        place: value
        for place, value in found.items()
        if _is(value, "serving", True) and _is(value, "terminating", False)
    }


def _family(address: str) -> int:
    return ipaddress.ip_address(address).version


def _inside(address: str, networks: list[str]) -> bool:
    parsed = ipaddress.ip_address(address)
    return any(parsed in ipaddress.ip_network(text) for text in networks if text)


def _place(place: Place) -> str:
    address, port = place
    return f"[{address}]:{port}" if _family(address) == 6 else f"{address}:{port}"


def _verdict(word: str) -> Json:
    return {"verdict": word, "backends": [], "masquerade": False}
