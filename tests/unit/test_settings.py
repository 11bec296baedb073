"""Command line over file over defaults, and following a file that changes."""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from click.testing import CliRunner

from lbctl.addresses import parse_prefix
from lbctl.cli.agent import command as agent_command
from lbctl.config import file as configfile
from lbctl.config import watch as configwatch
from lbctl.config.bind import parse_bind
from lbctl.config.file import ConfigFile
from lbctl.config.kubeproxyconfig import KubeProxyConfig
from lbctl.config.settings import OPTIONS, Settings
from lbctl.config.settle import MOST_RANGES, Said, settle
from lbctl.config.settle import from_command_line as flags
from lbctl.config.watch import FollowedFile
from lbctl.datapath import consts
from lbctl.errors import ConfigError, UsageError
from lbctl.resolve.node import NodeSettings

THEIRS = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
OURS = "---\napiVersion: lbctl/v1alpha1\nkind: AgentConfiguration\n"
FULL = (
    f"{THEIRS}"
    "clusterCIDR: 10.0.0.0/8\ndetectLocalMode: NodeCIDR\nhealthzBindAddress: 127.0.0.1:99\n"
    "hostnameOverride: of-file\nclientConnection: {kubeconfig: /file}\n"
    f"{OURS}"
    "serviceCIDRs: [10.96.0.0/16]\nuplinks: [eth*]\npodInterfaces: [cali*]\n"
    "services: 100\nendpoints: 200\nflows: 300\ntakeover: off\nsocketLB: off\nlogFormat: json\n"
    "apiServer: https://file\n"
)


def _file(text: str) -> ConfigFile:
    return configfile.parse(text.encode())


def test_defaults() -> None:
    found = settle(flags(), ConfigFile())
    assert found.healthz == parse_bind("0.0.0.0:10256", 0)
    assert (found.takeover, found.socket_lb, found.log_format) == ("auto", "host", "text")
    assert found.node_name == ""
    assert (found.api_server, found.kubeconfig, found.file_kubeconfig) == (None, None, None)
    assert (found.services, found.endpoints, found.flows) == (None, None, None)


def test_the_file_is_used() -> None:
    found = settle(flags(), _file(FULL))
    assert found.node.cluster_cidrs == (parse_prefix("10.0.0.0/8"),)
    assert found.node.service_cidrs == (parse_prefix("10.96.0.0/16"),)
    assert found.node.pods_from_node_cidrs
    assert found.healthz == parse_bind("127.0.0.1:99", 0)
    assert (found.uplinks, found.pod_interfaces) == (("eth*",), ("cali*",))
    assert (found.services, found.endpoints, found.flows) == (100, 200, 300)
    assert (found.takeover, found.socket_lb, found.log_format) == ("off", "off", "json")
    assert found.node_name == "of-file"
    assert (found.api_server, found.file_kubeconfig) == ("https://file", Path("/file"))


def test_flags_win() -> None:
    said = flags(
        node_name="n",
        kubeconfig=Path("/flag"),
        api_server="https://flag",
        uplinks=("up",),
        pod_interfaces=("pod",),
        service_cidrs=("172.16.0.0/16,fd00::/112",),
        cluster_cidrs=("172.17.0.0/16", "fd01::/64"),
        healthz="[::]:1",
        services=16,
        endpoints=17,
        flows=128,
        takeover="on",
        socket_lb="all",
        log_format="text",
    )
    found = settle(said, _file(FULL))
    assert [str(p) for p in found.node.service_cidrs] == ["172.16.0.0/16", "fd00::/112"]
    assert [str(p) for p in found.node.cluster_cidrs] == ["172.17.0.0/16", "fd01::/64"]
    assert not found.node.pods_from_node_cidrs
    assert msgspec.structs.replace(found, service_cidrs=(), cluster_cidrs=()) == Settings(
        uplinks=("up",),
        pod_interfaces=("pod",),
        healthz=parse_bind("[::]:1", 0),
        node_name="n",
        kubeconfig=Path("/flag"),
        api_server="https://flag",
        services=16,
        endpoints=17,
        flows=128,
        takeover="on",
        socket_lb="all",
        log_format="text",
    )


def test_manifests_need_no_cluster() -> None:
    found = settle(flags(manifests=Path("/m")), _file(FULL))
    assert (found.api_server, found.file_kubeconfig) == (None, None)


@pytest.mark.parametrize("flag", ["off", ""])
def test_health_can_be_off(flag: str) -> None:
    assert settle(flags(healthz=flag), _file(FULL)).healthz is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"healthz": "host:1"}, "--healthz-bind-address: 'host:1'"),
        ({"service_cidrs": ("10.0.0.1",)}, "--service-cidr: '10.0.0.1'"),
        ({"api_server": "api:6443"}, "--api-server: 'api:6443' is not a URL"),
        ({"cluster_cidrs": ("10.0.0.0/99",)}, "--cluster-cidr: '10.0.0.0/99'"),
    ],
)
def test_a_flag_without_sense_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        flags(**given)


def test_what_the_rules_need_to_know_is_all_there() -> None:
    node, ours = (typing.get_type_hints(t) for t in (NodeSettings, Settings))
    assert {name: ours.get(name) for name in node} == node
    found = settle(flags(), _file(f"{FULL}".replace(OURS, f"nodePortAddresses: [primary]\n{OURS}")))
    assert found.node == NodeSettings(
        cluster_cidrs=(parse_prefix("10.0.0.0/8"),),
        service_cidrs=(parse_prefix("10.96.0.0/16"),),
        nodeport_addresses=("primary",),
        pods_from_node_cidrs=True,
    )


def test_what_kube_proxys_file_says_reaches_the_setting_of_that_name() -> None:
    said = {f.name for f in msgspec.structs.fields(KubeProxyConfig)} - {"node", "mode", "ignored"}
    node = {f.name for f in msgspec.structs.fields(NodeSettings)}
    said |= {name for name in node if not OPTIONS[name].option.field}
    said |= {"algorithm"}  # which both documents have
    assert said == {name for name, found in OPTIONS.items() if found.option.kube_proxy}


def test_a_setting_that_nobody_can_say_is_none() -> None:
    for found in OPTIONS.values():
        assert found.option.flag or found.in_file, found.name
        assert found.option.help.endswith("."), found.name
        assert not found.option.live or found.in_file, found.name
        assert bool(found.option.field) == (found.option.example is not None), found.name


TOO_MANY = tuple(f"10.{n}.0.0/16" for n in range(MOST_RANGES + 1))


def test_more_ranges_than_there_is_room_for_are_no_settings() -> None:
    """At the start, too: an agent that can write nothing of what it was told is none."""
    assert MOST_RANGES == consts.MAX_SERVICE_CIDRS == consts.MAX_POD_CIDRS
    both = (*TOO_MANY[1:], *(f"fd00:{n}::/32" for n in range(1, MOST_RANGES + 1)))
    assert len(settle(flags(service_cidrs=both), ConfigFile()).service_cidrs) == 2 * MOST_RANGES
    with pytest.raises(UsageError, match="--service-cidr names 5 ranges of IPv4"):
        settle(flags(service_cidrs=TOO_MANY), ConfigFile())
    with pytest.raises(UsageError, match="--cluster-cidr names 5 ranges of IPv4"):
        settle(flags(cluster_cidrs=TOO_MANY), ConfigFile())
    with pytest.raises(ConfigError, match="serviceCIDRs names 5 ranges of IPv4"):
        settle(flags(), _file(f"{OURS}serviceCIDRs: [{', '.join(TOO_MANY)}]\n"))


@pytest.mark.parametrize("name", ["services", "endpoints", "flows", "dsr_port"])
def test_numbers_have_a_highest_one(name: str) -> None:
    """Flag and field: beyond, the kernel or the agent's memory would say so, in its own words."""
    least, most = OPTIONS[name].bounds
    assert least is not None
    assert most is not None
    flag, field = OPTIONS[name].option.flag, OPTIONS[name].option.field
    result = CliRunner().invoke(agent_command, [flag, str(most + 1)])
    assert (result.exit_code, f"{most + 1} is not in the range" in result.output) == (2, True)
    with pytest.raises(ConfigError, match=f"{field}: expected int <= {most}"):
        _file(f"{OURS}{field}: {most + 1}\n")


# Following a file


class Followed:
    """A file, who follows it, and the log that makes."""

    def __init__(self, path: Path, said: Said) -> None:
        self.path = path
        file = configfile.read(path)
        self.watch = FollowedFile(path, said, settle(said, file), file)
        self.now = 0.0
        self.log: list[structlog.typing.EventDict] = []

    def polls(self, times: int = 2) -> Settings | None:
        """The first settings that so many polls in turn give."""
        with structlog.testing.capture_logs() as log:
            self.watch._log = structlog.get_logger()
            found = [self.watch.poll(self._later()) for _ in range(times)]
        self.log += log
        return next((f for f in found if f), None)

    def _later(self) -> float:
        self.now += configwatch.POLL_SECONDS
        return self.now

    def write(self, text: str) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.path)

    def said(self, event: str) -> list[object]:
        return [entry.get("fields") for entry in self.log if entry["event"] == event]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(f"{THEIRS}clusterCIDR: 10.0.0.0/8\n")
    return path


def test_a_change_is_taken_over_once(path: Path) -> None:
    followed = Followed(path, flags())
    assert followed.polls() is None
    text = f"{THEIRS}clusterCIDR: 10.1.0.0/16\nconntrack: {{udpTimeout: 10s}}\n{OURS}uplinks: [e]\n"
    followed.write(text)
    assert followed.polls(1) is None  # it may not be finished
    found = followed.polls(1)
    assert found is not None
    assert found.node.cluster_cidrs == (parse_prefix("10.1.0.0/16"),)
    assert (found.timeouts, found.uplinks) == ((("datagram_timeout", 10.0),), ("e",))
    assert followed.said("settings changed") == [["clusterCIDR", "conntrack", "uplinks"]]
    assert followed.polls(3) is None
    assert followed.watch.problems() == []


def test_more_ranges_than_there_is_room_for_change_nothing(path: Path) -> None:
    followed = Followed(path, flags())
    followed.write(
        f"{THEIRS}clusterCIDR: 10.1.0.0/16\n{OURS}serviceCIDRs: [{', '.join(TOO_MANY)}]\n"
    )
    assert followed.polls(4) is None
    (problem,) = followed.watch.problems()
    assert "serviceCIDRs names 5 ranges of IPv4; the agent goes on with what it said" in problem
    followed.write(f"{THEIRS}clusterCIDR: 10.2.0.0/16\n")
    found = followed.polls()
    assert found is not None
    assert found.node.cluster_cidrs == (parse_prefix("10.2.0.0/16"),)
    assert followed.watch.problems() == []


def test_it_is_not_looked_at_more_often_than_said(path: Path) -> None:
    followed = Followed(path, flags())
    followed.polls(1)
    assert followed.watch.due() == followed.now + configwatch.POLL_SECONDS
    followed.write(f"{THEIRS}clusterCIDR: 10.1.0.0/16\n")
    assert followed.watch.poll(followed.now + 0.1) is None
    assert followed.watch._seen == followed.watch._last


def test_a_config_map_is_followed(tmp_path: Path) -> None:
    """As the kubelet does it: the file is a link into ..data, which is a link that is swapped."""

    def version(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.conf").write_text(text)
        (tmp_path / "..tmp").symlink_to(name)
        (tmp_path / "..tmp").replace(tmp_path / "..data")

    version("..1", f"{THEIRS}clusterCIDR: 10.0.0.0/8\n")
    (tmp_path / "config.conf").symlink_to("..data/config.conf")
    followed = Followed(tmp_path / "config.conf", flags())
    version("..2", f"{THEIRS}clusterCIDR: 11.0.0.0/8\n")
    os.utime(tmp_path / "..2" / "config.conf", (0, 0))  # not even newer
    found = followed.polls()
    assert found is not None
    assert found.node.cluster_cidrs == (parse_prefix("11.0.0.0/8"),)


def test_what_needs_a_restart_is_named_and_kept_in_mind(path: Path) -> None:
    followed = Followed(path, flags())
    followed.write(f"{path.read_text()}hostnameOverride: other\n{OURS}takeover: on\nflows: 500\n")
    assert followed.polls() is None
    names = ["hostnameOverride", "flows", "takeover"]
    assert followed.said("changed settings need a restart of the agent") == [names]
    assert followed.polls() is None
    (problem,) = followed.watch.problems()
    assert problem.endswith("restart of the agent is needed for hostnameOverride, flows, takeover")
    followed.write(f"{THEIRS}clusterCIDR: 10.0.0.0/8\n")
    followed.polls()
    assert followed.watch.problems() == []


def test_what_a_flag_says_does_not_change(path: Path) -> None:
    followed = Followed(path, flags(cluster_cidrs=("10.5.0.0/16",), takeover="off"))
    followed.write(f"{THEIRS}clusterCIDR: 10.1.0.0/16\n{OURS}takeover: on\n")
    assert followed.polls() is None
    assert followed.log == []
    assert followed.watch.problems() == []


def test_a_broken_file_changes_nothing_and_is_reported_once(path: Path) -> None:
    followed = Followed(path, flags())
    followed.write(f"{THEIRS}{OURS}uplink: [eth0]\n")
    assert followed.polls(5) is None
    (problem,) = followed.watch.problems()
    assert "uplink: no such field of AgentConfiguration; the agent goes on" in problem
    assert len(followed.log) == 1
    path.unlink()
    assert followed.polls(2) is None
    assert "No such file" in followed.watch.problems()[0]
    followed.write(f"{THEIRS}clusterCIDR: 10.9.0.0/16\n")
    assert followed.polls() is not None
    assert followed.watch.problems() == []


def test_settings_that_cannot_be_used_are_forgotten(path: Path) -> None:
    followed = Followed(path, flags())
    followed.write(f"{THEIRS}clusterCIDR: 10.9.0.0/16\n")
    assert followed.polls() is not None
    followed.watch.refused("no room")
    assert "no room; the agent goes on" in followed.watch.problems()[0]
    followed.write(f"{THEIRS}clusterCIDR: 10.0.0.0/8\n")
    assert followed.polls() is None  # as it was at the start
    assert followed.watch.problems() == []


def test_newly_ignored_fields_are_named_once(path: Path) -> None:
    followed = Followed(path, flags())
    followed.write(f"{path.read_text()}portRange: 1-2\n")
    followed.polls()
    followed.write(f"{THEIRS}portRange: 1-2\noomScoreAdj: 3\n")
    followed.polls()
    assert followed.said("settings without effect here") == [["portRange"], ["oomScoreAdj"]]
