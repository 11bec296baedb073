"""What `lbctl agent` makes of its options and its file before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner

from lbctl.cli import agent
from lbctl.config.settle import from_command_line
from lbctl.errors import ConfigError


@pytest.fixture(autouse=True)
def log_of_others() -> Iterator[None]:
    """The command sets the log up for the whole process, here to a file that a test captures."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_a_kubeconfig_of_kube_proxys_pod_gives_way_to_the_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, gone, account = (tmp_path / name for name in ("there", "gone", "token"))
    there.touch()
    monkeypatch.setattr(agent, "_SERVICE_ACCOUNT", account)
    assert agent._usable(None) is None
    assert agent._usable(there) == there
    assert agent._usable(gone) == gone  # an error later, which names it
    account.touch()
    assert agent._usable(there) == there
    assert agent._usable(gone) is None


def test_without_a_file_nobody_follows_one() -> None:
    found, watch = agent._settings(from_command_line(node_name="n"), None)
    assert found.node_name == "n"
    assert watch is None


def test_ignored_fields_are_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.conf"
    path.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        "portRange: 1-2\noomScoreAdj: -999\nhostnameOverride: n\n"
    )
    found, watch = agent._settings(from_command_line(log_format="json"), path)
    assert found.node_name == "n"
    assert watch is not None
    (line,) = capsys.readouterr().err.splitlines()
    assert '"fields": ["oomScoreAdj", "portRange"]' in line
    assert '"level": "info"' in line


def test_a_wrong_file_is_said_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text("apiVersion: lbctl/v1alpha1\nkind: AgentConfiguration\nuplink: [eth0]\n")
    with pytest.raises(ConfigError, match=r"config\.conf: uplink: no such field"):
        agent._settings({}, path)


def test_the_help_names_the_defaults() -> None:
    text = CliRunner().invoke(agent.command, ["--help"]).output
    for default in ("[default: auto]", "[default: text]", "0.0.0.0:10256"):
        assert default in " ".join(text.split())


def test_what_objects_say_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    agent.log_to_stderr("text", verbose=False)
    structlog.get_logger().info("facts", zone="z\x1b[31m\a", why="zwei\nZeilen é")
    said = capsys.readouterr().err
    assert all(c.isprintable() for c in said.rstrip("\n"))
    assert (r"z\x1b[31m\x07" in said, "é" in said) == (True, True)
