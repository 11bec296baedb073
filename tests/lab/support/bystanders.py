"""Innocent bystanders of a fault: clients of a service that nobody has a quarrel with, which must
lose nothing whatever is done beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lbctl.lab.cluster import Lab
from tests.lab.support.external import Exposed
from tests.lab.support.labs import Responder
from tests.support.waiting import wait_until

SCRIPT = Path(__file__).with_name("bystander_traffic.py")
PATIENCE = 60.0
STEADY = Exposed("steady", 1)
# Who calls, over which addresses: pods and the node by their own ways in, and the world.
WAYS: Mapping[str, Sequence[str]] = {
    "pod1": ("cluster", "ingress"),
    "node1": ("cluster",),
    "outside": ("node1", "external"),
}


class Target(NamedTuple):
    """An address, and who may answer there."""

    address: str
    port: int
    servers: Sequence[str]


class _Client:
    """The traffic of one member."""

    def __init__(self, lab: Lab, member: str, targets: Sequence[Target]) -> None:
        self.member = member
        self._log = lab.paths.run / f"bystander-{member}.log"
        with self._log.open("ab") as log:
            self._process = lab.popen(
                member,
                [sys.executable, "-S", str(SCRIPT), json.dumps(targets)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def made(self) -> int:
        return int(self._ask("made")["made"])

    def lost(self) -> str:
        """What was lost since this was last asked, in words."""
        said = self._ask("lost")
        if not said["lost"]:
            return ""
        return f"{self.member} lost {said['lost']}: " + "; ".join(said["shown"])

    def _ask(self, word: str) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the bystander in {self.member} has ended: {self._log.read_text()}"
        said: dict[str, Any] = json.loads(line)
        return said

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()


class Bystanders:
    """Traffic of several members that goes on until the end of the block."""

    def __init__(self, lab: Lab, targets: Mapping[str, Sequence[Target]]) -> None:
        self._clients = [_Client(lab, member, found) for member, found in targets.items()]

    def made(self) -> list[int]:
        return [client.made() for client in self._clients]

    def lost(self) -> list[str]:
        """What was lost since this was last asked, by member: each test answers for itself."""
        return [lost for client in self._clients if (lost := client.lost())]

    def unharmed(self, messages: int = 24) -> None:
        """Wait until each member has sent so many more; none may have been lost until then.

        The default is a few rounds of every kind of traffic over every address."""
        wanted = [made + messages for made in self.made()]

        lost: list[str] = []

        def settled() -> bool:
            lost.extend(self.lost())
            return bool(lost) or all(
                made >= want for made, want in zip(self.made(), wanted, strict=True)
            )

        wait_until(settled, PATIENCE, lambda: "bystanders hang")
        lost += self.lost()
        assert not lost, "\n".join(lost)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def steady_lab(
    make_lab: Callable[..., Lab], name: str, servers: Sequence[str], **options: Any
) -> Iterator[Lab]:
    """A lab whose pods all answer, with the service that bystanders call."""
    made = make_lab(name, **options)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        STEADY.publish(made, servers)
        yield made
    made.down()


@contextmanager
def bystanders(lab: Lab, targets: Mapping[str, Sequence[Target]]) -> Iterator[Bystanders]:
    """Traffic for the time of a block; it has begun, and nothing may be lost by its end."""
    made = Bystanders(lab, targets)
    try:
        made.unharmed()
        yield made
        made.unharmed()
    finally:
        made.close()


def targets(
    lab: Lab,
    servers: Iterable[str],
    ways: Mapping[str, Sequence[str]] = WAYS,
    service: Exposed = STEADY,
) -> dict[str, list[Target]]:
    """Both families of each way to a service, by member."""
    answering = sorted(servers)
    return {
        member: [
            Target(*service.where(lab, way, family), answering)
            for way in found
            for family in (0, 1)
        ]
        for member, found in ways.items()
    }
