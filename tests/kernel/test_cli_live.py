"""The command line against an instance in the kernel, with programs on a veth of a namespace."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf.compile import compiler
from ebpf.hooks.tc import Attacher
from ebpf.instance import Instance, Sizes
from ebpf.kernel import bpffs
from ebpf.maps.sizes import buckets_for
from ebpf.programs import load_generation
from lbctl import status
from lbctl.datapath import consts
from tests.kernel.support import table_programs
from tests.kernel.support.programs import MACHINE_BPFFS, Space
from tests.support.cli import DNS, TCP, UDP, WEB, populate
from tests.support.fake_cells import FakeFlowTable

pytestmark = pytest.mark.kernel

SIZES = Sizes(services=64, endpoints=256, flows=512)
HEAVY = {"bcc", "kubernetes", "pyroute2", "prometheus_client", "scapy"}


def unique(prefix: str) -> str:
    return f"cl-{prefix}-{os.getpid()}"


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    """An instance that no agent holds, with services and flows."""
    bpffs.mount()
    path = MACHINE_BPFFS / unique("cli")
    with Instance.create_or_open(path, compiler.bundle(), SIZES) as instance:
        ids = populate(instance)
        web, dns = ids[WEB], ids[DNS]
        table_programs.pin(instance, compiler.bundle())
        four = FakeFlowTable()
        tcp = four.add_flow(TCP, ("10.1.0.7", 40001), ("10.96.0.1", 80), ("10.1.0.2", 8080),
                            service=web)  # fmt: skip
        udp = four.add_flow(UDP, ("10.1.0.8", 40002), ("10.96.0.10", 53), ("10.1.0.3", 53),
                            service=dns, state=consts.STATE_DATAGRAM)  # fmt: skip
        six = four.add_flow(TCP, ("fd00:1::7", 40003), ("fd00:96::1", 80), ("fd00:1::2", 8080),
                            service=web)  # fmt: skip
        table_programs.open_flows(instance, "4", four.cells[tcp], four.cells[udp])
        table_programs.open_flows(instance, "6", four.cells[six])
    yield path
    Attacher(path).detach_all()
    bpffs.remove_tree(path)
    status.remove(path)


def lbctl(*words: str, pin_dir: Path | None = None, stdin: str = "") -> tuple[int, str, str]:
    environment = os.environ | ({"LBCTL_PIN_DIR": str(pin_dir)} if pin_dir else {})
    done = subprocess.run(
        [sys.executable, "-m", "lbctl", *words],
        input=stdin,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def held(pin_dir: Path) -> Iterator[int]:
    """Another process holds the instance, as an agent does."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom ebpf.kernel.bpffs import Lock\n"
        "lock = Lock(Path(sys.argv[1]))\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(pin_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.stdin.close()


def test_services_and_their_backends(pin_dir: Path) -> None:
    code, out, err = lbctl("service", "list", "-o", "json", "--pin-dir", str(pin_dir))
    assert (code, err) == (0, "")
    rows = {row["name"]["text"]: row for row in json.loads(out)}
    assert len(rows) == 4
    assert [a["endpoint"] for a in rows[WEB]["addresses"]] == ["10.96.0.1:80", "192.0.2.1:30080"]
    assert rows[WEB]["counters"]["connections"] == 3
    code, out, _ = lbctl("service", "show", "default/web", pin_dir=pin_dir)
    assert code == 0
    assert "10.1.1.2:8080  another node" in out
    code, out, _ = lbctl("backend", "list", "kube-dns", "-o", "yaml", pin_dir=pin_dir)
    assert code == 0
    assert "endpoint: 10.1.0.3:53" in out


def test_flows_are_listed_and_ended(pin_dir: Path) -> None:
    code, out, _ = lbctl("flow", "list", "-o", "json", pin_dir=pin_dir)
    assert code == 0
    assert {row["client"] for row in json.loads(out)} == {
        "10.1.0.7:40001",
        "10.1.0.8:40002",
        "[fd00:1::7]:40003",
    }
    assert lbctl("flow", "flush", "--service", "default/web", "--yes", pin_dir=pin_dir) == (
        0,
        "",
        "ended 2 flows\n",
    )
    with Instance.open(pin_dir) as instance:
        left = [table.rooms().used for table in instance.flow_tables]
        live = instance.service_counters.records["live"].sum()
    assert left == [2, 0]
    assert live == 1


def test_reading_commands_load_nothing_heavy(pin_dir: Path) -> None:
    script = (
        "import sys\n"
        "from lbctl.cli.main import command\n"
        "command(sys.argv[1:], prog_name='lbctl', standalone_mode=False)\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)\n"
    )
    for words in (
        ("service", "list"),
        ("service", "show", "web"),
        ("backend", "list"),
        ("flow", "list"),
        ("status",),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *words, "--pin-dir", str(pin_dir)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        loaded = set(done.stderr.split())
        assert "lbctl.inspect.opened" in loaded
        assert not loaded & HEAVY, words


def test_status_without_an_agent(pin_dir: Path) -> None:
    code, out, _ = lbctl("status", "-o", "json", pin_dir=pin_dir)
    assert code == 0
    found = json.loads(out)
    assert found.keys() >= {"ready", "services", "endpoints", "last_apply"}
    assert (found["ready"], found["agent"]) == (False, 0)
    assert "no agent runs" in found["warnings"][0]
    uses = {use["name"]: use for use in found["maps"]}
    assert (uses["services"]["entries"], uses["services"]["capacity"]) == (4, 64)
    assert (uses["backends"]["entries"], uses["flows4"]["entries"]) == (4, 4)
    assert uses["flows4"]["capacity"] == uses["flows4"]["most"] == 8 * buckets_for(SIZES.flows)
    assert not uses.keys() & {"cells4a", "control6b"}  # one row for what is one table
    assert uses["config"]["entries"] is None
    # Two endpoints of web and one of them local, one of web over IPv6, one of DNS; equal sets of
    # the last two share a region.
    assert uses["slots"]["entries"] == 5
    # A trie takes memory by the entry, and there is none.
    assert [name for name, use in uses.items() if not use["bytes"]] == ["source_ranges"]
    assert found["reasons"]["forwarded"] == 0
    assert lbctl("status", "--check", pin_dir=pin_dir)[0] == 5


def test_status_believes_an_agent_only_while_it_runs(pin_dir: Path) -> None:
    with held(pin_dir) as agent:
        record = status.StatusRecord(
            pid=agent, version="1", node="n", pin_dir=str(pin_dir), ready=True, services=3,
            tables={"services": status.TableUse(4, 64, "--services", 999)},
        )  # fmt: skip
        status.write(record)
        found = json.loads(lbctl("status", "-o", "json", pin_dir=pin_dir)[1])
        assert (found["ready"], found["agent"], found["services"]) == (True, agent, 3)
        most = {use["name"]: (use["most"], use["flag"]) for use in found["maps"]}
        assert most["services"] == most["names"] == most["service_counters"] == (999, "--services")
        assert lbctl("status", "--check", pin_dir=pin_dir)[0] == 0
    found = json.loads(lbctl("status", "-o", "json", pin_dir=pin_dir)[1])
    assert (found["ready"], found["agent"], found["services"]) == (False, 0, 3)


def test_an_instance_that_is_not_there(pin_dir: Path) -> None:
    code, out, err = lbctl("service", "list", "--pin-dir", str(pin_dir) + "x")
    assert (code, out) == (3, "")
    assert f"there is no instance at {pin_dir}x" in err
    assert str(pin_dir) in err.splitlines()[-1]


def test_cleanup_asks_and_is_refused_while_an_agent_runs(pin_dir: Path) -> None:
    with held(pin_dir) as agent:
        code, _, err = lbctl("cleanup", "--yes", pin_dir=pin_dir)
        assert code == 4
        assert f"process {agent} " in err
        assert "--force" in err
        assert (pin_dir / "meta").exists()
    code, _, err = lbctl("cleanup", pin_dir=pin_dir, stdin="n\n")
    assert code == 1
    assert "Remove all of it?" in err
    assert (pin_dir / "meta").exists()


def test_cleanup_with_force_removes_a_held_instance(pin_dir: Path) -> None:
    with held(pin_dir):
        assert lbctl("cleanup", "--yes", "--force", pin_dir=pin_dir)[0] == 0
        assert not pin_dir.exists()


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_cleanup_removes_what_is_ours_and_nothing_else(pin_dir: Path, mode: str) -> None:
    neighbour = pin_dir.with_name(unique("other"))
    space = Space(unique(mode))
    try:
        bpffs.make_directory(neighbour)
        with Instance.open(pin_dir, readonly=False) as instance:
            generation = load_generation(compiler.bundle(), instance)
        attachers = [Attacher(pin_dir, mode), Attacher(neighbour)]
        bpffs.make_directory(neighbour / "links")
        program = generation.fds["entry_from_pod"]
        index = space.index()
        space.run(lambda: attachers[0].attach("left", index, "ingress", program))
        space.run(lambda: attachers[1].attach("left", index, "egress", program))
        status.write(status.StatusRecord(pid=1, version="", node="", pin_dir=str(pin_dir)))

        code, out, err = space.run(lambda: lbctl("cleanup", "--yes", pin_dir=pin_dir))
        assert (code, out) == (0, "")
        assert "programs on left" in err
        assert not pin_dir.exists()
        assert not status.path_of(pin_dir).exists()
        assert space.run(lambda: attachers[0].attachments()) == []
        (kept,) = space.run(lambda: attachers[1].attachments())
        assert kept.prog_id
        assert lbctl("cleanup", "--yes", pin_dir=pin_dir)[0] == 3
    finally:
        Attacher(neighbour).detach_all()
        bpffs.remove_tree(neighbour)
        space.close()


def test_cleanup_takes_no_directory_that_is_not_an_instance(pin_dir: Path) -> None:
    foreign = pin_dir.with_name(unique("foreign"))
    bpffs.make_directory(foreign / "globals")
    try:
        code, _, err = lbctl("cleanup", "--yes", "--pin-dir", str(foreign))
        assert code == 1
        assert "is not an instance of lbctl: it holds globals" in err
        assert (foreign / "globals").is_dir()
        assert lbctl("cleanup", "--yes", "--pin-dir", str(MACHINE_BPFFS))[0] == 1
        assert foreign.is_dir()
    finally:
        bpffs.remove_tree(foreign)
