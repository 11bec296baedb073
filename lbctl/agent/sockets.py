"""Sockets of the node's own processes, and of pods if asked: whose are told a backend at once."""

import socket
import sys
from pathlib import Path
from typing import Final

import structlog

from ebpf.errors import LbError
from ebpf.hooks import cgroup
from ebpf.programs import Generation
from lbctl.datapath import consts

OFF: Final = "off"
HOST: Final = "host"
ALL: Final = "all"

_SO_NETNS_COOKIE = 71
_HINT = "--cgroup names the cgroup of this node's processes; --socket-lb off does without."
_FLAGS: Final = {
    OFF: 0,
    HOST: consts.CONFIG_SOCKET_HOST | consts.CONFIG_SOCKET_PEERS,
    ALL: consts.CONFIG_SOCKET_HOST | consts.CONFIG_SOCKET_ALL | consts.CONFIG_SOCKET_PEERS,
}


class SocketHooks:
    """The socket hooks of one instance, in one of three modes: "off", "host" (this network
    namespace) or "all" (pods too)."""

    def __init__(self, pin_dir: Path, mode: str, directory: Path | None) -> None:
        """`directory` is the cgroup to attach to; None: the root of all."""
        self.mode = mode
        self._generation: Generation | None = None
        self._attacher = cgroup.SocketAttacher(pin_dir)
        self._directory = directory
        self._problem = ""
        self.repairs = 0  # times that somebody had taken them away
        self._log = structlog.get_logger()
        self.host_netns = own_netns_cookie()

    @property
    def flags(self) -> int:
        """CONFIG_SOCKET_* for the `config` record."""
        return _FLAGS[self.mode]

    @property
    def problems(self) -> list[str]:
        """Why sockets are not served although they should be."""
        return [self._problem] if self._problem else []

    def warnings(self, localhost_node_ports: bool) -> list[str]:
        """What is asked for and cannot be had in this mode."""
        if localhost_node_ports and self.mode == OFF:
            return [
                "node ports on localhost are served at sockets alone, which --socket-lb off leaves "
                "alone: host or all serves them"
            ]
        return []

    def attach(self, generation: Generation) -> bool:
        """Put these programs on the cgroup, or with mode "off" take away what is there. Returns
        whether anything had to be done."""
        self._generation = generation
        problem, changed = "", False
        try:
            if self.mode == OFF:
                changed = self._attacher.detach() > 0
                if changed:
                    self._log.info("socket hooks removed")
            else:
                directory = self._directory or cgroup.root()
                changed = self._attacher.attach(generation.fds, directory)
                if changed:
                    self._log.info("socket hooks in place", cgroup=str(directory), mode=self.mode)
        except LbError as error:
            problem = f"sockets of this node are not served: {error.message}"
            if problem != self._problem:
                hint = f"{error.hint} {_HINT}".strip()
                self._log.error("no socket hooks", error=error.message, hint=hint)
        self._problem = problem
        return changed

    def refresh(self) -> None:
        """Put them there again, if somebody took them away or it was not possible before."""
        if self._generation is not None:
            were_there = not self._problem
            self.repairs += self.attach(self._generation) and were_there


def own_netns_cookie() -> int:
    """What the kernel calls the network namespace of this thread; never reused for another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        raw = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    return int.from_bytes(raw, sys.byteorder)
