"""deploy/: the manifests agree with each other, with the image, and with the code they run."""

import re
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

from lbctl import status
from lbctl.cli.agent import command as agent
from lbctl.cli.verify import command as verify
from lbctl.config import file as configfile
from lbctl.config import settle
from lbctl.config.bind import parse_bind
from lbctl.config.file import ConfigFile
from lbctl.config.settings import OPTIONS
from lbctl.health.monitor import Health, Verdict
from lbctl.host import reserve
from lbctl.pins import DEFAULT_PIN_DIR

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
READ = ["list", "watch"]  # each kind as a whole; a single object is never asked for


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


def test_every_mount_has_its_volume() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    for mount in AGENT["volumeMounts"]:
        volume = volumes[mount["name"]]
        if "hostPath" in volume:
            # The same place inside as outside: paths in messages then hold for both. No engine
            # mounts anything inside /proc.
            path = volume["hostPath"]["path"]
            assert mount["mountPath"] == (f"/host{path}" if path.startswith("/proc/") else path)


def test_every_volume_is_mounted() -> None:
    mounted = {mount["name"] for mount in AGENT["volumeMounts"]}
    assert mounted == {volume["name"] for volume in POD["volumes"]}


def test_what_is_written_is_mounted_to_be_written() -> None:
    mounts = {mount["mountPath"]: mount for mount in AGENT["volumeMounts"]}
    writable = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    pins = str(Path(DEFAULT_PIN_DIR).parent)
    # TemporaryDirectory's place is what is left of a read-only root.
    assert writable == {pins, str(status.RUN_DIR), "/var/cache/lbctl", "/tmp", str(reserve.MOUNTED)}
    # What others mount there later is seen; only a privileged container could hand on its own.
    assert mounts[pins]["mountPropagation"] == "HostToContainer"


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
    for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
        assert AGENT[probe]["httpGet"] == {"path": path, "port": bind.port}
    health = Health()
    try:
        health.ready()
        health.judge(Verdict(settled=True))
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
    spec = one("DaemonSet")["spec"]
    assert spec["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 1}
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_the_agent_is_root_and_bounded() -> None:
    assert AGENT["securityContext"] == {
        "runAsUser": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        # tests/lab/test_confined.py runs the agent with these, and without each.
        "capabilities": {"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "NET_RAW", "PERFMON"]},
        "seccompProfile": {"type": "Unconfined"},
        "appArmorProfile": {"type": "Unconfined"},
        "seLinuxOptions": {"type": "spc_t"},
    }
    assert AGENT["resources"]["requests"].keys() == {"cpu", "memory"}
    assert AGENT["image"] == KUSTOMIZATION["images"][0]["name"]


def test_nothing_is_privileged_and_nobody_elses_processes_are_seen() -> None:
    text = (DEPLOY / "daemonset.yaml").read_text()
    assert "privileged: true" not in text
    assert "initContainers" not in POD
    assert not {"hostPID", "hostIPC", "shareProcessNamespace"} & POD.keys()


def test_every_component_patches_what_is_there() -> None:
    found = sorted(path.parent for path in DEPLOY.glob("components/*/kustomization.yaml"))
    assert [path.name for path in found] == [
        "events",
        "mount-bpffs",
        "pod-sockets",
        "seccomp-runtime-default",
        "verify",
    ]
    for directory in found:
        if directory.name == "verify":  # it patches nothing
            continue
        (said,) = documents(f"components/{directory.name}/kustomization.yaml")
        assert said["kind"] == "Component"
        assert said["patches"] == [{"path": "daemonset.yaml"}]
        (patch,) = documents(f"components/{directory.name}/daemonset.yaml")
        for key in ("apiVersion", "kind"):
            assert patch[key] == one("DaemonSet")[key]
        assert patch["metadata"] == one("DaemonSet")["metadata"]
        pod = patch["spec"]["template"]["spec"]
        assert {c["name"] for c in pod.get("containers", ())} <= {AGENT["name"]}
        volumes = {v["name"] for v in (*POD["volumes"], *pod.get("volumes", ()))}
        for container in (*pod.get("containers", ()), *pod.get("initContainers", ())):
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes


def test_the_job_that_verifies_is_made_of_what_is_there() -> None:
    (component,) = documents("components/verify/kustomization.yaml")
    assert component["resources"] == ["cronjob.yaml"]
    (job,) = documents("components/verify/cronjob.yaml")
    spec = job["spec"]["jobTemplate"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert job["metadata"]["namespace"] == KUSTOMIZATION["namespace"]
    assert pod["serviceAccountName"] == POD["serviceAccountName"]
    assert container["image"] == AGENT["image"]
    context = verify.make_context("verify", list(container["args"][1:]))
    assert container["args"][0] == "verify"
    assert context.params["repair"]
    agents = next(a for a in AGENT["args"] if a.startswith("--pin-dir="))
    assert agents in container["args"]
    # No two on one node, and as many as both say.
    assert spec["parallelism"] == spec["completions"]
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    labels = spec["template"]["metadata"]["labels"]
    assert term["labelSelector"]["matchLabels"] == labels
    # It is no agent, nor taken for one.
    assert labels != one("DaemonSet")["spec"]["selector"]["matchLabels"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    ours = {volume["name"]: volume for volume in POD["volumes"]}
    for name in ("bpffs", "cgroup", "run"):
        assert volumes[name]["hostPath"]["path"] == ours[name]["hostPath"]["path"]
    added = set(container["securityContext"]["capabilities"]["add"])
    assert added < set(AGENT["securityContext"]["capabilities"]["add"])


def test_closing_pods_sockets_adds_one_capability() -> None:
    (patch,) = documents("components/pod-sockets/daemonset.yaml")
    (agent_there,) = patch["spec"]["template"]["spec"]["containers"]
    # A patch replaces the list.
    assert agent_there["securityContext"]["capabilities"]["add"] == [
        *AGENT["securityContext"]["capabilities"]["add"],
        "SYS_ADMIN",
    ]


def test_events_are_an_option_and_a_role_of_their_own() -> None:
    (said,) = documents("components/events/kustomization.yaml")
    assert said["resources"] == ["rbac.yaml"]
    (patch,) = documents("components/events/daemonset.yaml")
    (agent_there,) = patch["spec"]["template"]["spec"]["containers"]
    assert agent_there["env"] == [{"name": OPTIONS["events"].option.env, "value": "on"}]
    role, binding = documents("components/events/rbac.yaml")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == one("ClusterRoleBinding")["subjects"]
    assert OPTIONS["events"].otherwise == "off"


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
