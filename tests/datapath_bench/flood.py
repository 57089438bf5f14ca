"""Sends one frame again and again out of a device, as fast as the kernel can or at a rate.

The frames are the kernel's own (BPF_F_TEST_XDP_LIVE_FRAMES, 5.18, as xdp-trafficgen does it): a
program redirects each out of the device, and nobody has to make a packet of it on the way. A veth
takes such frames where its other end has GRO or an XDP program.

    python -m datapath_bench.flood DEVICE FRAME SECONDS [FRAMES_A_SECOND]

FRAME is in hexadecimal. Runs in the namespace of the device; prints a JSON object: how many it
sent, how long it took, and the CPU time, in which the other end has dealt with them as well.
"""

import ctypes
import json
import socket
import struct
import sys
import time

from kersey_loader import bpf
from kersey_loader.bpf import Descriptor

_PROG_LOAD, _TEST_RUN = 5, 10
_XDP = 6  # BPF_PROG_TYPE_XDP
_LIVE_FRAMES = 1 << 1
_REDIRECT = 23  # BPF_FUNC_redirect
_BATCH = 64
_BURST = 1 << 20
"""Frames a system call, which waits some milliseconds for the kernel's readers; a tenth of a
second's at a rate."""


def load_redirect(ifindex: int) -> Descriptor:
    """Return an XDP program that sends every frame out of a device."""
    text = b"".join(
        struct.pack("=BBhi", *instruction)
        for instruction in (
            (0xB7, 1, 0, ifindex),
            (0xB7, 2, 0, 0),
            (0x85, 0, 0, _REDIRECT),
            (0x95, 0, 0, 0),
        )
    )
    instructions, licence = ctypes.create_string_buffer(text), ctypes.create_string_buffer(b"GPL")
    addresses = ctypes.addressof(instructions), ctypes.addressof(licence)
    attr = bpf._attr("IIQQ", _XDP, len(text) // 8, *addresses)
    return Descriptor(bpf._bpf("load the generator", _PROG_LOAD, attr))


def send(program: Descriptor, frame: bytes, count: int) -> None:
    """Send a frame so many times."""
    data = ctypes.create_string_buffer(frame, len(frame))
    attr = bpf._attr(
        "IIIIQQIIIIQQIII",
        *(program.fd, 0, len(frame), 0, ctypes.addressof(data), 0),
        *(count, 0, 0, 0, 0, 0),
        *(_LIVE_FRAMES, 0, _BATCH),
    )
    bpf._bpf("send frames", _TEST_RUN, attr)


def flood(program: Descriptor, frame: bytes, *, seconds: float, rate: float) -> int:
    """Send frames for a while, `rate` a second or without limit where it is 0; return how many."""
    burst = round(rate / 10) if rate else _BURST
    began, sent = time.monotonic(), 0
    while (spent := time.monotonic() - began) < seconds:
        ahead = sent / rate - spent if rate else 0.0
        if ahead > 0:
            time.sleep(ahead)
        send(program, frame, burst)
        sent += burst
    return sent


def main() -> None:
    """Send as the command line says."""
    device, frame, seconds, *rate = sys.argv[1:]
    with load_redirect(socket.if_nametoindex(device)) as program:
        began, used = time.monotonic(), time.process_time()
        sent = flood(
            program,
            bytes.fromhex(frame),
            seconds=float(seconds),
            rate=float(rate[0]) if rate else 0.0,
        )
        spent = {"seconds": time.monotonic() - began, "cpu": time.process_time() - used}
    print(json.dumps({"sent": sent, **spent}))


if __name__ == "__main__":
    main()
