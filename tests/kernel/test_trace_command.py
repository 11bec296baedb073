"""`lbctl trace` as a command: what people read, where flows enter, what goes to stderr."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from ebpf.compile import compiler
from lbctl.cli.main import command as lbctl
from lbctl.trace.asking import Answer
from tests.support.k8s_objects import (
    Json,
    endpoint,
    endpoint_slice,
    service,
)

pytestmark = pytest.mark.kernel

BPFFS = Path("/sys/fs/bpf")


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(lbctl, ["trace", *map(str, arguments)])


def _answers(*arguments: object) -> list[Answer]:
    result = _run(*arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout, type=list[Answer])


def test_no_llvm_in_the_process(tmp_path: Path) -> None:
    compiler.bundle("trace")  # cached from here on
    objects = tmp_path / "objects.json"
    objects.write_bytes(msgspec.json.encode(service()))
    code = (
        "import sys\n"
        "from lbctl.cli.main import command\n"
        "command(sys.argv[1:], standalone_mode=False)\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert 'libbpf' in maps and 'LLVM' not in maps and 'libbcc' not in maps\n"
    )
    arguments = ["trace", "--manifests", objects, "--node-name", "n", "10.0.0.9", "172.30.0.41:80"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "no_endpoint" in done.stdout


def _file(tmp_path: Path, objects: list[Json]) -> Path:
    path = tmp_path / "objects.json"
    path.write_bytes(msgspec.json.encode({"kind": "List", "items": objects}))
    return path


def test_people_get_a_table_with_a_sentence(tmp_path: Path) -> None:
    path = _file(tmp_path, [service(), endpoint_slice(endpoints=[endpoint("10.0.0.2")])])
    common = ("--manifests", path, "--node-name", "worker-1")
    one = _run(*common, "10.0.0.9", "172.30.0.41:80")
    assert one.exit_code == 0, one.output
    for text in ("forward", "10.0.0.2:80", "ns1/svc1:http/TCP/v4", "one of them"):
        assert text in one.stdout
    flows = tmp_path / "flows.json"
    asked = {"source_ip": "10.0.0.9", "dest_port": 80, "protocol": "TCP"}
    flows.write_bytes(
        msgspec.json.encode(
            [
                {"name": "first", "dest_ip": "172.30.0.41", **asked},
                {"name": "second", "dest_ip": "192.0.2.1", **asked},
            ]
        )
    )
    many = _run(*common, "--flows", flows)
    assert many.exit_code == 0, many.output
    lines = many.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["first", "forward"], ["second", "pass"]]
    assert "not_service: No service" in many.stdout


def _under_local_policy() -> list[Json]:
    """A service with an external address, policy Local, whose endpoint is on another node."""
    outside = service(externalIPs=["203.0.113.9"], externalTrafficPolicy="Local")
    return [outside, endpoint_slice(endpoints=[endpoint("10.0.1.2", "worker-2")])]


def _asked_as(arrivals: Sequence[str]) -> bytes:
    """A file of flows to that address, which differ in where they enter."""
    flow = {"source_ip": "10.0.0.9", "dest_ip": "203.0.113.9", "dest_port": 80, "protocol": "TCP"}
    return msgspec.json.encode([{"name": a, "arrives": a, **flow} for a in arrivals])


def test_each_arrival_has_its_own_program(tmp_path: Path) -> None:
    """What comes by an uplink is under the external policy; pods and the node are not."""
    flows = tmp_path / "flows.json"
    flows.write_bytes(_asked_as(["pod", "uplink", "node"]))
    path = _file(tmp_path, _under_local_policy())
    pod, uplink, own = _answers("--manifests", path, "--node-name", "worker-1", "--flows", flows)
    assert (pod.verdict, pod.masquerade) == ("forward", False)
    assert (uplink.verdict, uplink.reason) == ("drop", "no_local_endpoint")
    assert (own.verdict, own.masquerade) == ("forward", False)


@pytest.mark.parametrize(
    ("arrives", "remarked"), [("pod", False), ("uplink", False), ("node", True)]
)
def test_people_are_told_that_no_socket_was_asked(
    tmp_path: Path, arrives: str, remarked: bool
) -> None:
    flows = tmp_path / "flows.json"
    flows.write_bytes(_asked_as([arrives]))
    path = _file(tmp_path, _under_local_policy())
    result = _run("--manifests", path, "--node-name", "worker-1", "--flows", flows)
    assert result.exit_code == 0, result.output
    assert ("translated at its sockets" in result.stderr) == remarked


def test_the_nodes_own_address_means_its_sockets(tmp_path: Path) -> None:
    path = _file(tmp_path, _under_local_policy())
    common = ("--manifests", path, "--node-name", "worker-1", "--local-ip", "192.168.0.2")
    result = _run(*common, "192.168.0.2", "203.0.113.9:80")
    assert result.exit_code == 0, result.output
    assert "translated at its sockets" in result.stderr


def test_without_an_instance_the_exit_code_says_so() -> None:
    result = _run("10.0.0.9", "172.30.0.41:80", "--pin-dir", BPFFS / "tr-none")
    assert result.exit_code == 3
    assert "no instance at" in result.stderr


def test_what_the_agent_would_log_is_told_on_stderr(tmp_path: Path) -> None:
    """Data stays alone on stdout."""
    twin = service("twin")
    path = _file(tmp_path, [service(), twin])
    common = ("--manifests", path, "--node-name", "worker-1", "-o", "json")
    result = _run(*common, "10.0.0.9", "172.30.0.41:80")
    assert msgspec.json.decode(result.stdout, type=list[Answer])[0].reason == "no_endpoint"
    assert "ns1/twin asks for 172.30.0.41:80, which ns1/svc1 has" in result.stderr
