"""One packet through one program, in the kernel but off every wire (BPF_PROG_TEST_RUN)."""

from __future__ import annotations

import ctypes
import errno
import struct

import msgspec

from ebpf.errors import KernelError
from ebpf.kernel import libbpf

# BPF_F_TEST_SKB_CHECKSUM_COMPLETE: the kernel checks that programs keep skb->csum right.
CHECKSUM_COMPLETE = 1 << 2
# BPF_F_TEST_XDP_LIVE_FRAMES: what the program says is done with the frames (5.18).
_LIVE_FRAMES = 1 << 1
_BATCH = 64  # of live frames: what a driver takes at once
_HEADROOM = 512
_CONTEXT_SIZE = 192
# Offsets of struct __sk_buff that a test run takes over.
_CONTEXT_FIELDS = {
    "mark": 8,
    "priority": 32,
    "ingress_ifindex": 36,
    "ifindex": 40,
    "wire_len": 172,
    "gso_segs": 164,
    "gso_size": 176,
}


class Result(msgspec.Struct, frozen=True):
    """`retval` is signed (TC_ACT_UNSPEC is -1), `duration_ns` is per repetition."""

    retval: int
    packet: bytes
    duration_ns: int
    ctx: bytes


def run(
    prog_fd: int,
    packet: bytes,
    repeat: int = 1,
    ctx: bytes | None = None,
    flags: int = 0,
) -> Result:
    """Runs a SCHED_CLS or XDP program on a frame (Ethernet header first, 14 bytes at least).

    `ctx` is a struct __sk_buff, see `context`. The skb's device is the loopback of the calling
    thread's network namespace unless ctx names another. Repetitions see what the first one wrote.
    Raises KernelError.
    """
    out = ctypes.create_string_buffer(len(packet) + _HEADROOM)
    ctx_out = ctypes.create_string_buffer(_CONTEXT_SIZE)
    options = libbpf.TestRunOptions(
        sz=ctypes.sizeof(libbpf.TestRunOptions),
        data_in=ctypes.cast(ctypes.c_char_p(packet), ctypes.c_void_p),
        data_size_in=len(packet),
        data_out=ctypes.cast(out, ctypes.c_void_p),
        data_size_out=len(out),
        repeat=repeat,
        flags=flags,
    )
    if ctx is not None:
        options.ctx_in = ctypes.cast(ctypes.c_char_p(ctx), ctypes.c_void_p)
        options.ctx_size_in = len(ctx)
        options.ctx_out = ctypes.cast(ctx_out, ctypes.c_void_p)
        options.ctx_size_out = _CONTEXT_SIZE
    code = libbpf.library().bpf_prog_test_run_opts(prog_fd, ctypes.byref(options))
    if code < 0:
        hint = "A frame has at least 14 bytes." if code == -errno.EINVAL else ""
        raise KernelError("the test run of a program failed", -code, hint)
    return Result(
        ctypes.c_int32(options.retval).value,
        out.raw[: options.data_size_out],
        options.duration,
        ctx_out.raw[: options.ctx_size_out] if ctx is not None else b"",
    )


def send_live(prog_fd: int, packet: bytes, ifindex: int, count: int) -> int:
    """Runs an XDP program on `count` frames that a device might have received, and does with each
    what it says: XDP_TX sends it by that device. The device must have an XDP program, or another
    reason to be ready for them. A frame is not made anew for each run: it may have what the program
    wrote for one before it. Returns nanoseconds per frame, of all that was done with it meanwhile.
    Raises KernelError: EINVAL on kernels that cannot."""
    context = driver_context(packet, ifindex)
    options = libbpf.TestRunOptions(
        sz=ctypes.sizeof(libbpf.TestRunOptions),
        data_in=ctypes.cast(ctypes.c_char_p(packet), ctypes.c_void_p),
        data_size_in=len(packet),
        ctx_in=ctypes.cast(ctypes.c_char_p(context), ctypes.c_void_p),
        ctx_size_in=len(context),
        repeat=count,
        flags=_LIVE_FRAMES,
        batch_size=min(count, _BATCH),
    )
    code = libbpf.library().bpf_prog_test_run_opts(prog_fd, ctypes.byref(options))
    if code < 0:
        raise KernelError("the kernel does not send frames of our own", -code)
    return int(options.duration)


def driver_context(packet: bytes, ifindex: int) -> bytes:
    """A struct xdp_md: the packet came in by this device, which has an XDP program."""
    return struct.pack("=6I", 0, len(packet), 0, ifindex, 0, 0)


def context(**fields: int) -> bytes:
    """A struct __sk_buff with some of mark, priority, ifindex, ingress_ifindex, gso_size, gso_segs,
    wire_len set; KeyError for others, since the kernel takes no more."""
    out = bytearray(_CONTEXT_SIZE)
    for name, value in fields.items():
        struct.pack_into("=I", out, _CONTEXT_FIELDS[name], value)
    return bytes(out)
