"""Whether a device does what XDP wants of it: tried with frames of our own, before it is used.

They have an ethertype for experiments, and the device's own address as source and destination: a
switch that sees one has nowhere to send it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ebpf.kernel import netdev, netlink, testrun
from ebpf.kernel.netdev import DriverFeatures
from ebpf.kernel.netlink import Link

_ETHERTYPE = b"\x88\xb5"  # IEEE 802, local experimental
_FRAMES = 8
_XDP_PASS = 2
TEST_SECONDS = 3.0  # some drivers bring their counts up to date every second or two


def unfit(link: Link, above: bool) -> str:
    """Why XDP is none for this interface, whatever its driver can; empty if it may be. `above`: it
    has VLAN devices."""
    if link.bare or len(link.mac) != 6:
        return "it has no Ethernet header"
    if link.master:
        return "it is a port of another device"
    if above:
        return "it carries VLANs, and drivers take the tag off before XDP sees a frame"
    return ""


@dataclass(frozen=True, slots=True)
class Trial:
    """Frames are on their way: the device had sent so many before."""

    before: int
    until: float

    def passed(self, ifindex: int) -> bool:
        """Whether they have been sent. Raises OSError."""
        return netlink.transmitted(ifindex) >= self.before + _FRAMES


def features(ifindex: int) -> int:
    """netdev.BASIC and so on. Raises KernelError."""
    with DriverFeatures() as asked:
        return asked.of(ifindex)


def missing(features: int) -> str:
    """What its driver lacks to have programs at all."""
    if features & netdev.BASIC and features & netdev.REDIRECT:
        return ""
    return "its driver has no native XDP, or none that sends on"


def try_program(link: Link, prog_fd: int) -> str:
    """Runs the program that is at the driver now, as if a frame of ours had come in there. Why it
    will not do; empty if it does. Raises KernelError."""
    frame = _frame(link)
    context = testrun.driver_context(frame, link.ifindex)
    found = testrun.run(prog_fd, frame, ctx=context)
    if (found.retval, found.packet) != (_XDP_PASS, frame):
        return "its program does not hand up what is not for it"
    return ""


def begin(link: Link, programs: Mapping[str, int], now: float) -> Trial:
    """Send frames by the device as a driver would. Raises KernelError, OSError."""
    before = netlink.transmitted(link.ifindex)
    testrun.send_live(programs["xdp_probe"], _frame(link), link.ifindex, _FRAMES)
    return Trial(before, now + TEST_SECONDS)


def _frame(link: Link) -> bytes:
    return (link.mac * 2 + _ETHERTYPE).ljust(60, b"\0")


CANNOT_SEND = (
    "it does not transmit what other drivers received; where it is a veth, its peer needs "
    "generic-receive-offload (ethtool -K PEER gro on) or an XDP program"
)
