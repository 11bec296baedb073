"""Files as a source: what counts, what errors say, and that half a file removes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from lbctl.errors import SourceError
from lbctl.model.records import ObjectKey
from lbctl.sources import documents
from lbctl.sources import manifests as manifests_module
from lbctl.sources.documents import load_manifests, manifest_files
from lbctl.sources.manifests import ManifestSource
from tests.support.following import Follower
from tests.support.k8s_objects import Json, endpoint, endpoint_slice, node, port, service


def _yaml(*values: Json) -> str:
    return yaml.safe_dump_all(values)


def _pods(count: int) -> Json:
    return endpoint_slice(endpoints=[endpoint(f"10.0.0.{i + 1}") for i in range(count)])


class FileFollower(Follower):
    """A source of files that runs, and what it said."""

    def __init__(self, path: Path) -> None:
        super().__init__(ManifestSource(path, "worker-1"))
        self.source.start()

    def stays(self, seconds: float = 0.7) -> None:
        """Nothing changes for a while (longer than two looks)."""
        for _ in range(int(seconds / 0.05)):
            update = self.take(0.05)
            assert update is None or not update.services

    @property
    def problems(self) -> str:
        return "\n".join(self.source.status().problems)


Follow = Callable[[Path], FileFollower]


@pytest.fixture
def follow() -> Iterator[Follow]:
    started: list[FileFollower] = []

    def start(path: Path) -> FileFollower:
        follower = FileFollower(path)
        started.append(follower)
        follower.until(lambda: follower.source.status().synced)
        follower.take(0)
        return follower

    yield start
    for follower in started:
        follower.source.stop()


def test_file_with_documents_lists_and_other_kinds(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {}}
    listed = {"kind": "List", "apiVersion": "v1", "items": [service("svc2"), other]}
    typed = {"kind": "NodeList", "items": [{k: v for k, v in node().items() if k != "kind"}]}
    file.write_text("---\n---\n" + _yaml(service(), _pods(2), listed, typed))
    found = load_manifests(file)
    assert sorted(map(str, found.services)) == ["ns1/svc1", "ns1/svc2"]
    assert len(found.services[ObjectKey("ns1", "svc1")].slices[0].endpoints) == 2
    assert list(found.nodes) == ["worker-1"]


def test_directory_reads_yaml_and_json_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(_yaml(service("a")))
    (tmp_path / "b.json").write_bytes(
        msgspec.json.encode({"kind": "List", "items": [service("b")]})
    )
    (tmp_path / "c.json").write_text(
        "\n---\n".join(msgspec.json.encode(service(n)).decode() for n in ("c", "d"))
    )
    (tmp_path / "notes.txt").write_text("}{")
    (tmp_path / ".hidden.yaml").write_text("}{")
    (tmp_path / "sub.yaml").mkdir()
    assert [f.name for f in manifest_files(tmp_path)] == ["a.yml", "b.json", "c.json"]
    assert sorted(k.name for k in load_manifests(tmp_path).services) == ["a", "b", "c", "d"]


def test_namespace_defaults_and_times_are_text(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        """
kind: Service
metadata: {name: web, creationTimestamp: 2025-01-01T00:00:00Z}
spec: {clusterIP: 172.30.0.1, ports: [{port: 80}]}
---
kind: Node
metadata: {name: n, deletionTimestamp: 2025-01-01T00:00:00Z}
"""
    )
    found = load_manifests(file)
    assert list(map(str, found.services)) == ["default/web"]
    assert found.nodes["n"].deleting


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: Service\n  bad: x\n", "line 2, column 6"),
        (_yaml({"metadata": {}}), "document 1: an object without kind"),
        ("just words\n", "document 1: expected an object, got str"),
    ],
)
def test_errors_name_file_document_object_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(SourceError) as caught:
        load_manifests(file)
    assert str(file) in caught.value.message
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            _yaml(service(), service("web", ports=[{**port(), "port": 70000}])),
            "document 2: Service ns1/web: spec.ports[0].port: expected int <= 65535",
        ),
        (
            _yaml({"kind": "List", "items": [service(), service(cluster_ips=["1.2.3.4.5"])]}),
            "document 1, item 2: Service ns1/svc1: spec.clusterIPs[0]: '1.2.3.4.5' is not an IP",
        ),
        (
            _yaml(service(), {**_pods(1), "addressType": "IPX"}),
            "ns1/svc1-1: addressType: 'IPX' is not",
        ),
    ],
)
def test_what_is_wrong_with_a_part_is_remarked_and_the_rest_is_used(
    tmp_path: Path, text: str, message: str
) -> None:
    """Like the agent, which serves it: who asks about it is not to be turned away."""
    file = tmp_path / "partly.yaml"
    file.write_text(text)
    found = load_manifests(file)
    (remark,) = found.remarks
    assert str(file) in remark
    assert message in remark
    assert ObjectKey("ns1", "svc1") in found.services


def test_missing_path_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        ManifestSource(tmp_path / "none", "worker-1").start()


def test_follows_a_file(tmp_path: Path, follow: Follow) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(_yaml(node(), service(), _pods(1)))
    follower = follow(file)
    assert follower.endpoints() == 1
    assert follower.last is not None
    assert follower.last.node is not None
    assert follower.last.complete
    file.write_text(_yaml(node(zone="a"), service(), _pods(3)))
    follower.until(lambda: follower.endpoints() == 3)
    assert follower.last.node_changed
    replacement = tmp_path / "new"
    replacement.write_text(_yaml(service("svc2")))
    replacement.rename(file)
    follower.until(lambda: follower.names() == ["svc2"])


def test_follows_a_directory(tmp_path: Path, follow: Follow) -> None:
    (tmp_path / "a.yaml").write_text(_yaml(service("a")))
    follower = follow(tmp_path)
    (tmp_path / "b.json").write_bytes(msgspec.json.encode(service("b")))
    follower.until(lambda: follower.names() == ["a", "b"])
    (tmp_path / "a.yaml").unlink()
    follower.until(lambda: follower.names() == ["b"])
    linked = tmp_path / "elsewhere"
    linked.write_text(_yaml(service("c")))
    (tmp_path / "c.yaml").symlink_to(linked)
    follower.until(lambda: follower.names() == ["b", "c"])


def test_only_what_changed_is_in_an_update(tmp_path: Path, follow: Follow) -> None:
    for name in "abc":
        (tmp_path / f"{name}.yaml").write_text(_yaml(service(name)))
    follower = follow(tmp_path)
    (tmp_path / "b.yaml").write_text(_yaml(service("b", cluster_ips=["172.30.0.99"])))
    key = ObjectKey("ns1", "b")
    follower.until(lambda: follower.last is not None and list(follower.last.services) == [key])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("{{{", "column"),
        ("", "is empty now"),
        (_yaml(service(), _pods(1)).removesuffix("\n"), "half-written"),
        (_yaml(service(), _pods(2)).partition("ports:\n- name")[0] + "ports:\n", "half-written"),
        ("just words\n", "expected an object, got str"),
    ],
)
def test_bad_content_keeps_the_last_good_one(
    tmp_path: Path, follow: Follow, broken: str, reason: str
) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(_yaml(service(), _pods(2)))
    other = tmp_path / "other.yaml"
    other.write_text(_yaml(service("other")))
    follower = follow(tmp_path)
    file.write_text(broken)
    follower.until(lambda: reason in follower.problems)
    assert str(file) in follower.problems
    follower.stays()
    assert follower.endpoints() == 2
    assert follower.source.status().complete
    other.write_text(_yaml(service("another")))
    follower.until(lambda: follower.names() == ["another", "svc1"])
    file.write_text(_yaml(service(), _pods(4)))
    follower.until(lambda: follower.endpoints() == 4)
    assert follower.problems == ""


def test_file_still_being_written_is_not_read(tmp_path: Path, follow: Follow) -> None:
    """Cut at the end of a line, half a file may look whole: what counts is that it is open."""
    file = tmp_path / "all.yaml"
    file.write_text(_yaml(service(), _pods(2)))
    follower = follow(tmp_path)
    text = _yaml(service(), _pods(3))
    cut = text.index("- addresses", text.index("- addresses") + 1)
    with file.open("w") as writer:
        writer.write(text[:cut])
        writer.flush()
        follower.stays(0.15)  # shorter than it takes to believe a file at rest
        writer.write(text[cut:])
    follower.until(lambda: follower.endpoints() == 3)


def test_broken_from_the_start_is_not_complete(tmp_path: Path, follow: Follow) -> None:
    """What can be had is used, but nothing may be removed that the file might hold."""
    file = tmp_path / "all.yaml"
    file.write_text(_yaml(service(), {**service("bad"), "spec": None}))
    follower = follow(file)
    assert follower.names() == ["svc1"]
    assert follower.last is not None
    assert not follower.last.complete
    assert "Service ns1/bad: spec: expected object, got null" in follower.problems
    file.write_text(_yaml(service(), service("bad")))
    follower.until(lambda: follower.last is not None and follower.last.complete)
    assert follower.names() == ["bad", "svc1"]


def test_configmap_swap(tmp_path: Path, follow: Follow) -> None:
    """A mounted ConfigMap: visible names link through ..data, which is replaced by a rename."""
    for version, value in (("..1", service("one")), ("..2", service("two"))):
        (tmp_path / version).mkdir()
        (tmp_path / version / "services.yaml").write_text(_yaml(value))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "services.yaml").symlink_to("..data/services.yaml")
    follower = follow(tmp_path)
    single = follow(tmp_path / "services.yaml")
    assert follower.names() == single.names() == ["one"]
    (tmp_path / "..tmp").symlink_to("..2")
    os.rename(tmp_path / "..tmp", tmp_path / "..data")
    follower.until(lambda: follower.names() == ["two"])
    single.until(lambda: single.names() == ["two"])


def test_single_file_removed_and_back(tmp_path: Path, follow: Follow) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(_yaml(service()))
    follower = follow(file)
    file.unlink()
    follower.until(lambda: follower.names() == [])
    file.write_text(_yaml(service("back")))
    follower.until(lambda: follower.names() == ["back"])


def test_vanished_directory_keeps_everything(tmp_path: Path, follow: Follow) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "a.yaml").write_text(_yaml(service("a")))
    follower = follow(directory)
    directory.rename(tmp_path / "away")
    follower.until(lambda: not follower.source.status().connected)
    assert "No such file" in follower.source.status().last_error
    assert follower.names() == ["a"]
    (tmp_path / "away").rename(directory)
    (directory / "b.yaml").write_text(_yaml(service("b")))
    follower.until(lambda: follower.names() == ["a", "b"])
    assert follower.source.status().connected


def test_object_in_two_files(tmp_path: Path, follow: Follow) -> None:
    (tmp_path / "a.yaml").write_text(_yaml(service(cluster_ips=["172.30.0.1"])))
    (tmp_path / "b.yaml").write_text(_yaml(service(cluster_ips=["172.30.0.2"])))
    follower = follow(tmp_path)
    assert "Service ns1/svc1 is in" in follower.problems
    (found,) = follower.services.values()
    assert found.service is not None
    assert found.service.cluster_ips[0][-1] == 1
    (tmp_path / "a.yaml").unlink()
    follower.until(lambda: follower.problems == "")
    (found,) = follower.services.values()
    assert found.service is not None
    assert found.service.cluster_ips[0][-1] == 2


def test_works_where_inotify_does_not(
    tmp_path: Path, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused:
        def __init__(self, directory: Path) -> None:
            raise SourceError(f"{directory} cannot be watched")

    monkeypatch.setattr(manifests_module, "DirectoryWatch", Refused)
    file = tmp_path / "all.yaml"
    file.write_text(_yaml(service(), _pods(1)))
    follower = follow(file)
    file.write_text(_yaml(service(), _pods(2)))
    follower.until(lambda: follower.endpoints() == 2)


def test_what_cannot_be_read_freezes_nothing_else(tmp_path: Path, follow: Follow) -> None:
    """A part costs itself, an object stays as it was, and what may be any object removes none."""
    file = tmp_path / "all.yaml"
    file.write_text(_yaml(service("a"), service("b"), service("c"), _pods(1), service()))
    follower = follow(file)
    spoilt = {**service("b"), "spec": 5}
    partly = service("c", ports=[port(80), {**port(81, "x"), "port": "no"}])
    file.write_text(_yaml(spoilt, partly, _pods(3), service()))
    follower.until(lambda: follower.endpoints() == 3)
    assert follower.names() == ["b", "c", "svc1"]  # a is gone, b is known from before
    assert "Service ns1/b: spec: expected object, got int" in follower.problems
    assert "Service ns1/c: spec.ports[1].port: expected int, got str" in follower.problems
    assert follower.source.status().complete
    found = follower.services[ObjectKey("ns1", "c")].service
    assert found is not None
    assert [p.port for p in found.ports] == [80]
    file.write_text(_yaml({"kind": "Service"}, _pods(4), service()))
    follower.until(lambda: follower.endpoints() == 4)
    assert follower.names() == ["b", "c", "svc1"]  # the nameless one may be either
    file.write_text(_yaml(_pods(2), service()))
    follower.until(lambda: follower.names() == ["svc1"])
    assert follower.problems == ""


def test_pipes_and_directories_are_no_manifests(tmp_path: Path, follow: Follow) -> None:
    """Reading a pipe would wait for whoever writes to it."""
    (tmp_path / "a.yaml").write_text(_yaml(service("a")))
    os.mkfifo(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").mkdir()
    (tmp_path / "d.yaml").symlink_to("nowhere")
    assert follow(tmp_path).names() == ["a"]
    pipe = follow(tmp_path / "b.yaml")
    assert "is not a regular file" in pipe.problems
    assert not pipe.source.status().complete


def test_a_huge_file_is_not_read(
    tmp_path: Path, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 5000)
    (tmp_path / "a.yaml").write_text(_yaml(service("a")))
    (tmp_path / "b.yaml").write_text("#" * 5001)
    follower = follow(tmp_path)
    assert follower.names() == ["a"]
    assert "has more than 5,000 bytes" in follower.problems


def test_a_thread_that_ends_is_replaced(
    tmp_path: Path, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is that nobody thought of."""
    file = tmp_path / "all.yaml"
    file.write_text(_yaml(service("a")))
    follower = follow(file)
    real = documents.parse

    def broken(file: Path, data: bytes) -> documents.Parsed:
        monkeypatch.setattr(manifests_module, "parse", real)
        raise ZeroDivisionError

    monkeypatch.setattr(manifests_module, "parse", broken)
    file.write_text(_yaml(service("b")))
    follower.until(lambda: follower.names() == ["b"])
    assert follower.source.status().restarts == 1
    assert follower.source.status().failing == ()
