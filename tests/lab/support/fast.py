"""What is seen of a node whose packets may pass its stack by."""

from __future__ import annotations

import re
from functools import partial

from lbctl.inspect import instance as inspected
from lbctl.inspect.opened import open_instance
from lbctl.lab.cluster import Lab
from lbctl.lab.state import AgentOptions
from tests.support.waiting import wait_until

OPTIONS = AgentOptions(extra=("--fast-path", "on"))


def passed(lab: Lab, node: str = "node1") -> int:
    """Packets that went past the stack of a node, as its programs count."""
    with open_instance(lab.pin_dir(node)) as instance:
        return inspected.passed(instance)


def forwarded(lab: Lab, family: int, node: str = "node1") -> int:
    """Packets that its stack has forwarded, as that counts."""
    if family:
        text = lab.exec(node, ["cat", "/proc/net/snmp6"], check=True).stdout
        return int(re.findall(r"^Ip6OutForwDatagrams\s+(\d+)", text, re.MULTILINE)[0])
    text = lab.exec(node, ["cat", "/proc/net/snmp"], check=True).stdout
    names, values = (line.split() for line in text.splitlines() if line.startswith("Ip:"))
    return int(values[names.index("ForwDatagrams")])


def is_open(lab: Lab, node: str = "node1") -> bool:
    """Whether the way is open, by what the programs go by."""
    with open_instance(lab.pin_dir(node)) as instance:
        return bool(instance.config.records["fast_open"][0])


def said(lab: Lab, node: str = "node1") -> tuple[str, ...]:
    """What stands in the way, by `lbctl status`."""
    with open_instance(lab.pin_dir(node)) as instance:
        return inspected.read(instance).fast_path.obstacles


def wait_open(lab: Lab) -> None:
    for node in lab.nodes:
        wait_until(partial(is_open, lab, node.name), why=lambda: str(lab.paths.run))
