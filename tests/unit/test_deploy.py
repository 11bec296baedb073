"""deploy/: the manifests agree with each other, with the image, and with the code they run."""

import re
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml

from lbctl.cli.agent import command as agent
from lbctl.config import file as configfile
from lbctl.config import settle
from lbctl.config.bind import parse_bind
from lbctl.config.file import ConfigFile
from lbctl.health.monitor import Health
from lbctl.pins import DEFAULT_PIN_DIR

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
READ = ["get", "list", "watch"]


def documents(name: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all((DEPLOY / name).read_text()) if found]


KUSTOMIZATION = documents("kustomization.yaml")[0]
GENERATORS: list[dict[str, Any]] = KUSTOMIZATION["configMapGenerator"]
OBJECTS = [found for name in KUSTOMIZATION["resources"] for found in documents(name)]


def one(kind: str) -> dict[str, Any]:
    (found,) = (item for item in OBJECTS if item["kind"] == kind)
    return found


POD: dict[str, Any] = one("DaemonSet")["spec"]["template"]["spec"]
AGENT: dict[str, Any] = POD["containers"][0]


def test_the_kustomization_lists_every_file() -> None:
    listed = set(KUSTOMIZATION["resources"])
    for generator in GENERATORS:
        listed |= {*generator.get("envs", ()), *generator.get("files", ())}
    present = {path.name for path in DEPLOY.iterdir() if path.is_file()}
    assert listed == present - {"kustomization.yaml"}


def test_everything_is_in_the_one_namespace() -> None:
    name = one("Namespace")["metadata"]["name"]
    assert KUSTOMIZATION["namespace"] == name
    for item in OBJECTS:
        if item["kind"] in ("ServiceAccount", "DaemonSet"):
            assert item["metadata"]["namespace"] == name
    assert one("ClusterRoleBinding")["subjects"][0]["namespace"] == name


def test_the_account_that_runs_is_the_one_that_may() -> None:
    account = one("ServiceAccount")["metadata"]["name"]
    binding = one("ClusterRoleBinding")
    assert POD["serviceAccountName"] == account
    assert [subject["name"] for subject in binding["subjects"]] == [account]
    assert binding["roleRef"]["name"] == one("ClusterRole")["metadata"]["name"]


def test_rights_are_exactly_what_the_source_asks_for() -> None:
    text = (ROOT / "lbctl" / "sources" / "kubernetes.py").read_text()
    asked = set()
    for path in re.findall(r'"(/apis?/[a-z0-9./]+)"', text):
        words = path.strip("/").split("/")
        asked.add(("" if words[0] == "api" else words[1], words[-1]))
    assert len(asked) == 3
    granted = set()
    for rule in one("ClusterRole")["rules"]:
        assert sorted(rule["verbs"]) == READ
        assert rule.keys() == {"apiGroups", "resources", "verbs"}
        granted |= {(group, name) for group in rule["apiGroups"] for name in rule["resources"]}
    assert granted == asked


@pytest.mark.parametrize("container", [*POD["containers"], *POD["initContainers"]])
def test_every_mount_has_its_volume(container: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    for mount in container["volumeMounts"]:
        volume = volumes[mount["name"]]
        if "hostPath" in volume:
            # The same place inside as outside: paths in messages then hold for both.
            assert volume["hostPath"]["path"] == mount["mountPath"]


def test_every_volume_is_mounted() -> None:
    mounted = {mount["name"] for mount in AGENT["volumeMounts"]}
    assert mounted == {volume["name"] for volume in POD["volumes"]}


def test_mounts_that_must_reach_the_node_do() -> None:
    mounts = {mount["mountPath"]: mount for mount in AGENT["volumeMounts"]}
    assert mounts["/sys/fs/bpf"]["mountPropagation"] == "Bidirectional"
    assert mounts["/run/netns"]["mountPropagation"] == "HostToContainer"
    assert POD["initContainers"][0]["volumeMounts"][0]["mountPropagation"] == "Bidirectional"


def test_the_agent_knows_its_arguments() -> None:
    name, *args = AGENT["args"]
    assert name == "agent"
    variables = {variable["name"] for variable in AGENT["env"]}
    used = set(re.findall(r"\$\((\w+)\)", " ".join(args)))
    assert used <= variables
    context = agent.make_context("agent", list(args))
    assert context.params["pin_dir"] == DEFAULT_PIN_DIR
    assert context.params["api_server"] == "$(KUBERNETES_API_SERVER)"
    assert context.params["node_name"] == "$(NODE_NAME)"
    assert context.params["manifests"] is None
    assert context.params["kubeconfig"] is None


def test_the_probes_ask_where_the_agent_answers() -> None:
    context = agent.make_context("agent", list(AGENT["args"][1:]))
    bind = parse_bind(context.params["healthz"], 0)
    assert bind.both
    for probe, path in (("readinessProbe", "/healthz"), ("livenessProbe", "/livez")):
        assert AGENT[probe]["httpGet"] == {"path": path, "port": bind.port}
    health = Health()
    try:
        health.ready()
        for probe in ("readinessProbe", "livenessProbe"):
            assert health.general(AGENT[probe]["httpGet"]["path"]).status == HTTPStatus.OK
    finally:
        health.stop()


def test_the_configuration_is_mounted_where_it_is_read() -> None:
    path = agent.make_context("agent", list(AGENT["args"][1:])).params["config"]
    volume = next(item for item in POD["volumes"] if item["name"] == "config")
    generator = next(g for g in GENERATORS if g["name"] == volume["configMap"]["name"])
    assert generator["files"] == [path.name]
    # Otherwise every change would be a new object, and a restart.
    assert generator["options"] == {"disableNameSuffixHash": True}
    mount = next(item for item in AGENT["volumeMounts"] if item["name"] == "config")
    assert mount["mountPath"] == str(path.parent)
    assert "subPath" not in mount


def test_the_configuration_says_nothing_yet() -> None:
    found = configfile.read(DEPLOY / "config.yaml")
    assert settle.settle({}, found) == settle.settle({}, ConfigFile())
    assert settle.ignored(found) == ()


def test_the_api_server_comes_from_the_file_to_edit() -> None:
    (generator,) = (g for g in GENERATORS if "envs" in g)
    variable = next(item for item in AGENT["env"] if item["name"] == "KUBERNETES_API_SERVER")
    reference = variable["valueFrom"]["configMapKeyRef"]
    assert reference["name"] == generator["name"]
    lines = (DEPLOY / generator["envs"][0]).read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert settings.keys() == {reference["key"]}
    assert settings[reference["key"]].startswith("https://")


def test_the_node_is_named_by_the_node() -> None:
    variable = next(item for item in AGENT["env"] if item["name"] == "NODE_NAME")
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"


def test_it_may_run_everywhere_and_first() -> None:
    assert POD["priorityClassName"] == "system-node-critical"
    assert POD["tolerations"] == [{"operator": "Exists"}]
    assert POD["hostNetwork"] is True
    assert POD["hostPID"] is True
    spec = one("DaemonSet")["spec"]
    assert spec["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1}
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


@pytest.mark.parametrize("container", [*POD["containers"], *POD["initContainers"]])
def test_containers_are_root_and_bounded(container: dict[str, Any]) -> None:
    assert container["securityContext"] == {"privileged": True, "runAsUser": 0}
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert container["image"] == KUSTOMIZATION["images"][0]["name"]


def test_the_image_is_of_this_version() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    assert version
    assert KUSTOMIZATION["images"] == [{"name": "lbctl", "newTag": version[1]}]


def test_the_image_starts_lbctl_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["lbctl"]' in lines
    assert not [line for line in lines if line.startswith("USER")]
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    needed = {"pyproject.toml", "README.md", "LICENSE", "bpf_src", "ebpf", "lbctl", "examples"}
    assert needed <= copied
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    assert allowed == needed
