"""What the benchmark needs of kube-proxy: it takes its configuration, lists and watches the API,
loads rules by the tools in its PATH, and tells by metrics when it has.

`--version`, or `--config FILE --hostname-override NAME`, as the real one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec

from lbctl.bench import iptables_rules, nftables_rules
from lbctl.bench.dataset import Dataset

SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
metrics = {"last_timestamp_seconds": 0.0}


class Metrics(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        for name, value in metrics.items():
            full = f"kubeproxy_sync_proxy_rules_{name}"
            self.wfile.write(f"# TYPE {full} gauge\n{full} {value}\n".encode())


def restore(mode: str, text: str) -> None:
    argv = ["nft", "-f", "-"] if mode == "nftables" else ["iptables-restore", "--noflush"]
    subprocess.run(argv, input=text, text=True, check=True)


def items(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(url) as answer:
        return list(json.load(answer)["items"])


def addresses(item: dict[str, Any]) -> list[str]:
    return [endpoint["addresses"][0] for endpoint in item["endpoints"]]


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        print("Kubernetes v1.0.0-fake")
        return
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    config = msgspec.yaml.decode(Path(given["--config"]).read_bytes())
    kubeconfig = msgspec.yaml.decode(Path(config["clientConnection"]["kubeconfig"]).read_bytes())
    server, mode = kubeconfig["clusters"][0]["cluster"]["server"], config["mode"]
    host, _, port = config["metricsBindAddress"].rpartition(":")
    serving = HTTPServer((host, int(port)), Metrics)
    threading.Thread(target=serving.serve_forever, daemon=True).start()

    services, slices = items(f"{server}/api/v1/services"), items(f"{server}{SLICES}")
    data = Dataset(len(services), len(slices[0]["endpoints"]))
    metrics.update(service_changes_total=len(services), endpoint_changes_total=len(slices))
    metrics.update(service_changes_pending=len(services))
    shape = nftables_rules if mode == "nftables" else iptables_rules
    restore(mode, shape.full(data))
    metrics.update(service_changes_pending=0, last_timestamp_seconds=1e9)
    known = data.backends(data.changing)
    with urllib.request.urlopen(f"{server}{SLICES}?watch=true&resourceVersion=1") as events:
        for line in events:
            new = addresses(json.loads(line)["object"])
            restore(mode, shape.change(data, known, new))
            known = new


if __name__ == "__main__":
    main()
