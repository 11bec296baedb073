"""Rules in the shape kube-proxy's nftables mode keeps them in, as input of nft.

One verdict map leads from address, protocol and port to the chain of a service; there another, by a
random number, leads to the chain of an endpoint, which translates.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence

from lbctl.bench.dataset import CLIENT_CIDR, NAMESPACE, PORT, TARGET_PORT, Dataset

TABLE = "ip kube-proxy"
_MARK = "0x4000"
_ELEMENTS = 500  # per statement

_BASICS = f"""
table {TABLE} {{
  comment "rules for kube-proxy";
  set cluster-ips {{ type ipv4_addr; comment "Active ClusterIPs"; }}
  set nodeport-ips {{ type ipv4_addr; comment "IPs that accept NodePort traffic"; }}
  map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; }}
  map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  chain mark-for-masquerade {{ mark set mark or {_MARK}; }}
  chain masquerading {{
    mark and {_MARK} == 0 return;
    mark set mark xor {_MARK};
    masquerade fully-random;
  }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips;
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports;
  }}
  chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
  chain cluster-ips-check {{
    ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs";
  }}
  chain service-endpoints-check {{
    ip daddr . meta l4proto . th dport vmap @no-endpoint-services;
  }}
  chain nodeport-endpoints-check {{
    ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports;
  }}
  chain filter-prerouting {{
    type filter hook prerouting priority -110;
    ct state new jump firewall-check;
  }}
  chain filter-input {{
    type filter hook input priority -110;
    ct state new jump nodeport-endpoints-check;
    ct state new jump service-endpoints-check;
  }}
  chain filter-forward {{
    type filter hook forward priority -110;
    ct state new jump service-endpoints-check;
    ct state new jump cluster-ips-check;
  }}
  chain filter-output {{
    type filter hook output priority -110;
    ct state new jump service-endpoints-check;
    ct state new jump firewall-check;
  }}
  chain filter-output-post-dnat {{
    type filter hook output priority -90;
    ct state new jump cluster-ips-check;
  }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}
"""


def full(data: Dataset) -> str:
    """Everything, as kube-proxy's first sync writes it."""
    services = range(data.services)
    lines = [_BASICS]
    for number in services:
        lines += _service(data, number, data.backends(number))
    entries = [
        f"{data.address(n)} . tcp . {PORT} : goto {service_chain(data, n)}" for n in services
    ]
    lines += _elements("service-ips", entries)
    lines += _elements("cluster-ips", [data.address(number) for number in services])
    return "\n".join(lines) + "\n"


def change(data: Dataset, old: Sequence[str], new: Sequence[str]) -> str:
    """The endpoints of the changing service replaced: its own chains are all that is written."""
    gone = [endpoint_chain(data, data.changing, address) for address in old if address not in new]
    lines = [
        *_service(data, data.changing, new),
        *(f"flush chain {TABLE} {chain}" for chain in gone),
        *(f"delete chain {TABLE} {chain}" for chain in gone),
    ]
    return "\n".join(lines) + "\n"


def service_chain(data: Dataset, service: int) -> str:
    name = f"{NAMESPACE}/{data.name(service)}/tcp/http"
    return f"service-{_digest(name)}-{name}"


def endpoint_chain(data: Dataset, service: int, address: str) -> str:
    name = f"{NAMESPACE}/{data.name(service)}/tcp/http"
    return f"endpoint-{_digest(name + address)}-{name}__{address}/{TARGET_PORT}"


def _digest(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:8]


def _service(data: Dataset, number: int, backends: Sequence[str]) -> Iterator[str]:
    chain = service_chain(data, number)
    address = data.address(number)
    chains = [endpoint_chain(data, number, backend) for backend in backends]
    for name in (chain, *chains):
        yield f"add chain {TABLE} {name}"
        yield f"flush chain {TABLE} {name}"
    yield (
        f"add rule {TABLE} {chain} ip daddr {address} tcp dport {PORT} "
        f"ip saddr != {CLIENT_CIDR} jump mark-for-masquerade"
    )
    choices = " , ".join(f"{index} : goto {name}" for index, name in enumerate(chains))
    yield f"add rule {TABLE} {chain} numgen random mod {len(chains)} vmap {{ {choices} }}"
    for name, backend in zip(chains, backends, strict=True):
        yield f"add rule {TABLE} {name} ip saddr {backend} jump mark-for-masquerade"
        yield f"add rule {TABLE} {name} meta l4proto tcp dnat to {backend}:{TARGET_PORT}"


def _elements(name: str, entries: Sequence[str]) -> Iterator[str]:
    for first in range(0, len(entries), _ELEMENTS):
        yield f"add element {TABLE} {name} {{ {', '.join(entries[first : first + _ELEMENTS])} }}"
