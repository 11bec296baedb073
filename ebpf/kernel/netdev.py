"""What drivers can do for XDP, by their own word (the kernel's netlink family "netdev", 6.3)."""

from __future__ import annotations

import errno
import functools
from typing import Any

from ebpf.errors import KernelError

# enum netdev_xdp_act.
BASIC = 1  # native programs: drop, pass, send back
REDIRECT = 2  # ... and to other devices
TRANSMIT = 4  # sends what other drivers have received

_DEV_GET = 1  # NETDEV_CMD_DEV_GET


_REQUEST = 1  # NLM_F_REQUEST


@functools.cache
def _message() -> Any:
    """The class of the family's messages."""
    from pyroute2.netlink import genlmsg  # not for who asks no driver: see netlink.rtnetlink

    class Message(genlmsg):  # type: ignore[misc] # pyroute2 has no types
        prefix = "NETDEV_A_DEV_"
        nla_map = (
            ("NETDEV_A_DEV_UNSPEC", "none"),
            ("NETDEV_A_DEV_IFINDEX", "uint32"),
            ("NETDEV_A_DEV_PAD", "none"),
            ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
        )

    return Message


class DriverFeatures:
    """Asks in the network namespace it was made in. Raises KernelError: ENOENT on kernels that
    cannot say."""

    def __init__(self) -> None:
        from pyroute2.netlink.exceptions import NetlinkError
        from pyroute2.netlink.generic import GenericNetlinkSocket

        self._socket = GenericNetlinkSocket()
        try:
            self._socket.bind("netdev", _message())
        except NetlinkError as error:
            self._socket.close()
            raise KernelError("the kernel does not say what drivers can do", error.code) from error

    def of(self, ifindex: int) -> int:
        """BASIC and so on of a device. Raises KernelError, ENODEV if it is gone."""
        from pyroute2.netlink.exceptions import NetlinkError

        what = f"the kernel does not say what the driver of interface {ifindex} can do"
        message = _message()()
        message["cmd"], message["version"] = _DEV_GET, 1
        message["attrs"] = [("NETDEV_A_DEV_IFINDEX", ifindex)]
        try:
            answers = self._socket.nlm_request(
                message, msg_type=self._socket.prid, msg_flags=_REQUEST
            )
        except NetlinkError as error:
            raise KernelError(what, error.code) from error
        for answer in answers:
            return int(answer.get_attr("NETDEV_A_DEV_XDP_FEATURES") or 0)
        raise KernelError(what, errno.ENODEV)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> DriverFeatures:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
