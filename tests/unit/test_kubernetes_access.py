"""How the Kubernetes source finds its server and proves who it is."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from urllib3.exceptions import HTTPError

from lbctl.addresses import parse_address
from lbctl.errors import ConfigError, SourceError
from lbctl.sources import access
from lbctl.sources.kubernetes import KubernetesSource
from tests.support.apiserver import ApiServer
from tests.support.following import QUICK, Follower, fill
from tests.support.k8s_objects import service


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


def test_rotated_token_is_read_again(server: ApiServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    server.accepted_token = "first"
    fill(server)
    source = KubernetesSource(
        "worker-1", kubeconfig=server.kubeconfig(tmp_path, token), settings=QUICK
    )
    source.start()
    follower = Follower(source)
    follower.until(lambda: source.status().synced and source.status().connected)
    token.write_text("second")
    server.accepted_token = "second"
    server.drop()
    server.put(service("svc2"))
    follower.until(lambda: follower.names() == ["svc1", "svc2"])
    assert server.tokens[-1].lower() == "bearer second"
    source.stop()


def test_api_server_replaces_the_address(server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")  # reading it again must not bring the address back
    config = server.kubeconfig(tmp_path, tmp_path / "token")
    config.write_bytes(config.read_bytes().replace(server.url.encode(), b"http://192.0.2.1:1"))
    source = KubernetesSource("worker-1", kubeconfig=config, api_server=server.url, settings=QUICK)
    source.start()
    try:
        follower = Follower(source)
        follower.until(lambda: source.status().synced and source.status().connected)
        server.drop()
        server.put(service())
        follower.until(lambda: follower.names() == ["svc1"])
    finally:
        source.stop()


def test_credentials_of_a_pod(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--api-server alone: the service account's token, sent to the address that was given."""
    (tmp_path / "token").write_text("of-the-pod\n")
    (tmp_path / "ca.crt").write_text("not asked for over plain HTTP")
    monkeypatch.setattr(access, "ACCOUNT", tmp_path)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    server.accepted_token = "of-the-pod"
    source = KubernetesSource("worker-1", api_server=server.url, settings=QUICK)
    source.start()
    try:
        follower = Follower(source)
        follower.until(lambda: source.status().synced)
    finally:
        source.stop()


def test_a_pod_behind_a_proxy_leaves_its_access_to_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.config import incluster_config

    for name, content in (("token", "x"), ("ca.crt", "y")):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.1:3128")
    found = access.find(None, "http://192.0.2.2:6443")
    assert isinstance(found, access.PackageAccess)
    assert found.credentials() == {"authorization": "bearer x"}


def test_a_pods_token_is_read_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("first")
    (tmp_path / "ca.crt").write_text("y")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    pod = access.PodAccess(None, tmp_path)
    assert pod.url == "https://[fd00::1]:443"
    (tmp_path / "token").write_text("second")
    assert pod.credentials() == {"authorization": "Bearer first"}
    monkeypatch.setattr(access, "_TOKEN_SECONDS", 0.0)
    assert pod.credentials() == {"authorization": "Bearer second"}
    (tmp_path / "token").unlink()
    assert pod.credentials() == {"authorization": "Bearer second"}


def test_no_pod_and_no_kubeconfig_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(access, "ACCOUNT", tmp_path)
    with pytest.raises(ConfigError, match="--kubeconfig"):
        KubernetesSource("worker-1")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is missing")
    path = tmp_path / "server.pem"
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(
        [openssl, "req", "-x509", *key, *subject, *files],
        check=True,
        capture_output=True,
        timeout=30,
    )
    path.write_bytes((tmp_path / "cert.pem").read_bytes() + (tmp_path / "key.pem").read_bytes())
    return path


def test_over_tls(certificate: Path, tmp_path: Path) -> None:
    """Lists, follows, survives a drop, and stops while a read is waiting."""
    with ApiServer(certificate=certificate) as server:
        fill(server)
        source = KubernetesSource(
            "worker-1", kubeconfig=server.kubeconfig(tmp_path), settings=QUICK
        )
        source.start()
        follower = Follower(source)
        follower.until(lambda: follower.endpoints() == 1 and source.status().connected)
        server.drop()
        server.put(service("svc2"))
        follower.until(lambda: follower.names() == ["svc1", "svc2"])
        follower.until(lambda: source.status().connected)
        source.stop()
        assert not any(watched.alive for watched in source.watched)


def test_unknown_certificate_is_refused(certificate: Path, tmp_path: Path) -> None:
    with ApiServer(certificate=certificate) as server:
        config = server.kubeconfig(tmp_path)
        other = str(ssl.get_default_verify_paths().openssl_cafile or certificate)
        config.write_text(config.read_text().replace(str(certificate), other))
        if not Path(other).exists():
            pytest.skip(f"no certificates of authorities in {other}")
        source = KubernetesSource("worker-1", kubeconfig=config, settings=QUICK)
        source.start()
        follower = Follower(source)
        follower.until(lambda: "certificate" in source.status().last_error.lower())
        assert not source.status().synced
        source.stop()


def test_missing_kubeconfig_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--manifests") as caught:
        KubernetesSource("worker-1", kubeconfig=tmp_path / "none")
    assert "none" in caught.value.message


def test_a_pod_trusts_its_own_authority_alone(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "ACCOUNT", tmp_path)
    (tmp_path / "token").write_text("of-the-pod")
    (tmp_path / "ca.crt").write_bytes((tmp_path / "cert.pem").read_bytes())
    with ApiServer(certificate=certificate) as server:
        client = access.find(None, server.url)
        answer = client.pool.request("GET", server.url + "/api/v1/services", timeout=5.0)
        assert answer.status == 200
        (tmp_path / "ca.crt").write_text("")
        with pytest.raises((OSError, HTTPError), match=r"(?i)certificate"):
            access.find(None, server.url).pool.request("GET", server.url + "/", timeout=5.0)


Spoil = Callable[[Path], None]


def _write(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def _broken_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def _directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


SPOILT: dict[str, Spoil] = {
    "missing": Path.unlink,
    "empty": lambda file: _write(file, b""),
    "no text": lambda file: _write(file, b"\xff\x00\x01"),
    "two lines": lambda file: _write(file, b"a\r\nX-Other: b"),
    "no ASCII": lambda file: _write(file, "t\u00f6ken".encode()),
    "huge": lambda file: _write(file, b"a" * 5_000_000),
    "a directory": _directory,
    "a pipe": _pipe,
    "a broken link": _broken_link,
}


@pytest.fixture
def account(tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pod's service account, read again at every request."""
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("first")
    (folder / "ca.crt").write_bytes((tmp_path / "cert.pem").read_bytes())
    monkeypatch.setattr(access, "_TOKEN_SECONDS", 0.0)
    return folder


@pytest.mark.parametrize("name", ["token", "ca.crt"])
@pytest.mark.parametrize("how", SPOILT)
def test_credentials_that_cannot_be_read_stay_as_they_were(
    account: Path, certificate: Path, how: str, name: str
) -> None:
    """While the kubelet swaps them, and also when they were refused meanwhile."""
    with ApiServer(certificate=certificate) as server:
        server.accepted_token = "first"
        pod = access.PodAccess(server.url, account)
        SPOILT[how](account / name)
        for _ in range(2):
            assert pod.credentials() == {"authorization": "Bearer first"}
            with pytest.raises(SourceError):
                pod.renew()
        url = server.url + "/api/v1/services"
        answer = pod.pool.request("GET", url, headers=pod.credentials(), timeout=5.0)
        assert answer.status == 200


def test_a_renewed_account_is_taken_over(account: Path) -> None:
    pod = access.PodAccess("https://192.0.2.1", account)
    (account / "token").unlink()
    assert pod.credentials() == {"authorization": "Bearer first"}
    (account / "token").write_text("second")
    assert pod.credentials() == {"authorization": "Bearer second"}


def test_without_credentials_is_not_for_ever(
    tmp_path: Path, account: Path, certificate: Path
) -> None:
    """--api-server alone, and no token at the moment the agent starts."""
    (account / "token").rename(account / "later")
    pod = access.PodAccess("https://192.0.2.1", account)
    assert pod.credentials() == {}
    (account / "later").rename(account / "token")
    assert pod.credentials() == {"authorization": "Bearer first"}


def test_a_kubeconfig_that_is_away_stays_as_it_was(server: ApiServer, tmp_path: Path) -> None:
    """Its token was refused, and at that moment there is no file, or half of it."""
    (tmp_path / "token").write_text("first")
    config = server.kubeconfig(tmp_path, tmp_path / "token")
    fill(server)
    source = KubernetesSource("worker-1", kubeconfig=config, settings=QUICK)
    source.start()
    try:
        follower = Follower(source)
        follower.until(lambda: source.status().synced and source.status().connected)
        good = config.read_bytes()
        server.accepted_token = "second"
        for bad in (b"", good[: len(good) // 2], b"\xff\xfe", b"[]", b"users: 5"):
            config.write_bytes(bad)
            seen = len(server.tokens)
            server.drop()
            follower.until(lambda seen=seen: len(server.tokens) > seen + 6)  # type: ignore[misc]
            assert server.tokens[-1].lower() == "bearer first"
        (tmp_path / "token").write_text("second")
        config.write_bytes(good)
        server.put(service("svc2"))
        follower.until(lambda: follower.names() == ["svc1", "svc2"])
        assert source.status().restarts == 0
    finally:
        source.stop()


def test_the_way_to_the_api_is_known_and_must_not_be_a_service(
    server: ApiServer, tmp_path: Path
) -> None:
    server.put(service("kubernetes", cluster_ips=["127.0.0.1"]))
    source = KubernetesSource("worker-1", kubeconfig=server.kubeconfig(tmp_path), settings=QUICK)
    source.start()
    try:
        follower = Follower(source)
        follower.until(lambda: source.status().connected and follower.names() == ["kubernetes"])
        assert source.api_places() == {(parse_address("127.0.0.1"), urlsplit(server.url).port)}
        (problem,) = source.status().problems
        assert "127.0.0.1 is that of service ns1/kubernetes" in problem
        assert "--api-server" in problem
        server.put(service("kubernetes"))
        follower.until(lambda: source.status().problems == ())
    finally:
        source.stop()


def test_a_name_is_resolved_by_who_answers(server: ApiServer, tmp_path: Path) -> None:
    named = server.url.replace("127.0.0.1", "localhost")
    source = KubernetesSource(
        "worker-1", kubeconfig=server.kubeconfig(tmp_path), api_server=named, settings=QUICK
    )
    assert source.api_places() == frozenset()
    source.start()
    try:
        follower = Follower(source)
        follower.until(lambda: source.status().connected)
        assert (parse_address("127.0.0.1"), urlsplit(server.url).port) in source.api_places()
    finally:
        source.stop()
