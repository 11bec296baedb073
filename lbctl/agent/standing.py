"""Writes down what the agent goes by, for commands that ask what it should have come to."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from ebpf.errors import Untrusted
from lbctl.agent.facts import Facts
from lbctl.config import standing
from lbctl.config.settings import Settings
from lbctl.config.standing import SourcePlace, Standing
from lbctl.errands import Errand

WRITING_SECONDS = 30.0  # a disk that takes longer hangs
_AGAIN_SECONDS = 1.0


class StandingFile:
    """Replaces the file when anything in it is another."""

    def __init__(
        self, pin_dir: Path, facts: Facts, settings: Callable[[], Settings], errand: Errand
    ) -> None:
        """`settings` gives those that hold now."""
        self._pin_dir = pin_dir
        self._facts = facts
        self._settings = settings
        self._errand = errand
        self._written: tuple[object, ...] = ()
        self._next = 0.0

    def due(self) -> float | None:
        """When `step` has something to do, on the monotonic clock."""
        return self._next if self._goes_by() != self._written else None

    def step(self, now: float) -> None:
        """Write it, unless the disk still has not taken the last one."""
        self._next = time.monotonic() + _AGAIN_SECONDS
        goes_by, content = self._goes_by(), self._content()
        if self._errand.send(lambda: self._write(content)):
            self._written = goes_by

    def _goes_by(self) -> tuple[object, ...]:
        """Records that are replaced as a whole: cheap to compare."""
        return self._facts.current, self._facts.node, self._settings()

    def _content(self) -> Standing:
        settings = self._settings()
        return Standing(
            pid=os.getpid(),
            node=self._facts.current,
            object=self._facts.node,
            source=SourcePlace(
                manifests=str(settings.manifests.absolute()) if settings.manifests else "",
                kubeconfig=_kubeconfig(settings),
                api_server=settings.api_server or "",
            ),
            uplinks=settings.uplinks,
            pod_interfaces=settings.pod_interfaces,
            socket_lb=settings.socket_lb,
            cgroup=str(settings.cgroup or ""),
        )

    def _write(self, content: Standing) -> None:
        try:
            standing.write(self._pin_dir, content)
        except (OSError, Untrusted) as error:
            structlog.get_logger().warning(
                "cannot write the file of what the agent uses", error=str(error)
            )


def _kubeconfig(settings: Settings) -> str:
    """The one that is used; see lbctl/cli/agent.py for a file of another pod."""
    if settings.kubeconfig:
        return str(settings.kubeconfig.absolute())
    file = settings.file_kubeconfig
    return str(file.absolute()) if file and file.exists() else ""
