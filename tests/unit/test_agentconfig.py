"""AgentConfiguration and the file that holds it: what they say, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from lbctl.addresses import parse_prefix
from lbctl.cli.agent import command
from lbctl.config import file as configfile
from lbctl.config import kubeproxyconfig
from lbctl.config.agentconfig import API_VERSION, FIELDS, KIND, parse
from lbctl.errors import ConfigError
from lbctl.trace import situation

EXAMPLE = Path(__file__).parents[2] / "examples" / "agent-config.yaml"
OURS = f"apiVersion: {API_VERSION}\nkind: {KIND}\n"
THEIRS = f"apiVersion: {kubeproxyconfig.API_VERSION}\nkind: {kubeproxyconfig.KIND}\n"


def _parse(**fields: Any) -> dict[str, Any]:
    return parse({"apiVersion": API_VERSION, "kind": KIND, **fields})


def test_nothing_said() -> None:
    assert _parse() == {}


def test_everything_said() -> None:
    found = _parse(
        serviceCIDRs=["10.96.0.0/16", "fd00:10:96::/112"],
        uplinks=["eth*"],
        podInterfaces=["cali*"],
        services=4096,
        endpoints=16384,
        flows=65536,
        takeover="auto",
        socketLB="host",
        logFormat="json",
        apiServer="https://api.example:6443",
    )
    assert found == {
        "service_cidrs": (parse_prefix("10.96.0.0/16"), parse_prefix("fd00:10:96::/112")),
        "uplinks": ("eth*",),
        "pod_interfaces": ("cali*",),
        "services": 4096,
        "endpoints": 16384,
        "flows": 65536,
        "takeover": "auto",
        "socket_lb": "host",
        "log_format": "json",
        "api_server": "https://api.example:6443",
    }


@pytest.mark.parametrize("nothing", [{"uplinks": []}, {"flows": None}, {"apiServer": ""}])
def test_empty_fields_say_nothing(nothing: dict[str, Any]) -> None:
    assert _parse(**nothing) == {}


def test_on_and_off_are_words() -> None:
    file = configfile.parse(f"{OURS}takeover: on\nsocketLB: off\n".encode())
    assert file.agent == {"takeover": "on", "socket_lb": "off"}


@pytest.mark.parametrize(
    ("fields", "says", "hint"),
    [
        ({"uplink": ["eth0"]}, "uplink: no such field", "Did you mean uplinks?"),
        ({"servicecidrs": []}, "servicecidrs: no such field", "Did you mean serviceCIDRs?"),
        ({"zzz": 1}, "zzz: no such field", "Known: apiVersion, kind, apiServer, serviceCIDRs"),
        ({"takeover": "maybe"}, "takeover: invalid enum value 'maybe'", "Known: auto, on, off."),
        ({"socketLB": True}, "socketLB: invalid enum value 'on'", "Known: off, host, all."),
        ({"logFormat": 3}, "logFormat: expected str", "Known: text, json."),
        ({"services": 3}, "services: expected int >= 16", ""),
        ({"flows": "many"}, "flows: expected int", ""),
        ({"serviceCIDRs": "10.96.0.0/16"}, "serviceCIDRs: expected array", ""),
        ({"serviceCIDRs": ["10.96.0.0"]}, r"serviceCIDRs\[0\]: '10.96.0.0'", ""),
        ({"uplinks": [""]}, r"uplinks\[0\]: expected str of length >= 1", ""),
        ({"apiServer": "api:6443"}, "apiServer: 'api:6443' is not a URL, like https://", ""),
        ({"apiVersion": "lbctl/v1"}, "apiVersion: 'lbctl/v1'", API_VERSION),
    ],
)
def test_what_is_wrong_names_the_field(fields: dict[str, Any], says: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        _parse(**fields)
    assert hint in caught.value.hint


def test_every_field_is_an_option_of_the_agent() -> None:
    options = {parameter.name for parameter in command.params}
    assert {found.name for found in FIELDS.values()} <= options


def test_both_documents_of_one_file() -> None:
    file = configfile.parse(f"{THEIRS}clusterCIDR: 10.0.0.0/8\n---\n{OURS}flows: 512\n".encode())
    assert file.kube_proxy.node.cluster_cidrs == (parse_prefix("10.0.0.0/8"),)
    assert file.agent == {"flows": 512}
    turned = configfile.parse(f"---\n{OURS}flows: 512\n---\n{THEIRS}---\n".encode())
    assert turned.agent == file.agent


def test_one_document_is_enough() -> None:
    assert configfile.parse(OURS.encode()).kube_proxy == kubeproxyconfig.KubeProxyConfig()
    assert configfile.parse(THEIRS.encode()).agent == {}


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("", "it is empty", "KubeProxyConfiguration, an AgentConfiguration"),
        (f"{OURS}---\n{OURS}", "two documents have the kind AgentConfiguration", "One of each"),
        ("kind: AgentConfig\n", "kind: 'AgentConfig' is unknown", "Did you mean AgentConfig"),
        ("apiVersion: v1\nkind: ConfigMap\n", "this is the ConfigMap", "jsonpath"),
        ("- 1\n", "no object", ""),
        ("just words\n", "no object", ""),
        ("a: [\n", "not YAML", ""),
        (f"{OURS}uplink: []\n", "uplink: no such field", "uplinks"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, says: str, hint: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml: ") as caught:
        configfile.read(path)
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_the_example_says_everything_we_read() -> None:
    file = configfile.read(EXAMPLE)
    assert file.kube_proxy.ignored == ()
    assert file.agent.keys() == {found.name for found in FIELDS.values()}
    default = kubeproxyconfig.KubeProxyConfig()
    same = {
        field.name
        for field in msgspec.structs.fields(type(default))
        if getattr(file.kube_proxy, field.name) == getattr(default, field.name)
    }
    assert same <= {"ignored", "mode"}, same


def test_trace_reads_both_documents(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"{THEIRS}oomScoreAdj: 1\n---\n{OURS}serviceCIDRs: [10.96.0.0/16]\n")
    said: list[str] = []
    facts = situation.node({}, "n", path, [], [], said.append)
    assert facts.service_cidrs == (parse_prefix("10.96.0.0/16"),)
    assert "oomScoreAdj" in said[0]
    facts = situation.node({}, "n", path, [], ["10.97.0.0/16"], said.append)
    assert facts.service_cidrs == (parse_prefix("10.97.0.0/16"),)
