"""Frames that a device would still have to segment or sum up, as packet sockets show them.

A stack leaves to the device what the device says it can do; between two veths nobody ever does it.
Promises that frames which would look the same behind a device without offloads are the same here.
Values only. Layout: struct virtio_net_hdr of include/uapi/linux/virtio_net.h, in host byte order.
"""

import struct
from dataclasses import dataclass
from typing import Self

from packets import checksum

_HEADER = struct.Struct("=BBHHHH")
_NEEDS_CHECKSUM = 1
_WHOLE, _UDP_SEGMENTS = 0, 5
_MOST = 0xFFFF
_IPV4_AT, _UDP_HEADER, _CHECKSUM_IN_UDP = 14, 8, 6


@dataclass(frozen=True, slots=True)
class Offload:
    """What is left to do for one frame.

    `linear` bytes are in one piece with the headers, `segment` is the payload of one datagram, 0
    if the frame is one packet; from `checksum_start` on it is summed up, 0 if it is already.
    """

    linear: int
    segment: int = 0
    checksum_start: int = 0
    checksum_offset: int = _CHECKSUM_IN_UDP
    kind: int = _UDP_SEGMENTS

    @property
    def header(self) -> bytes:
        """Return it as it stands in front of a frame."""
        return _HEADER.pack(
            _NEEDS_CHECKSUM if self.checksum_start else 0,
            self.kind if self.segment else _WHOLE,
            min(self.linear, _MOST),
            self.segment,
            self.checksum_start,
            self.checksum_offset if self.checksum_start else 0,
        )

    @classmethod
    def split(cls, data: bytes) -> tuple[Self, bytes]:
        """Return what stands in front of a frame, and the frame."""
        flags, kind, linear, segment, start, offset = _HEADER.unpack_from(data)
        needs = bool(flags & _NEEDS_CHECKSUM)
        offload = cls(
            linear=linear,
            segment=segment if kind != _WHOLE else 0,
            checksum_start=start if needs else 0,
            checksum_offset=offset if needs else 0,
            kind=kind,
        )
        return offload, data[_HEADER.size :]

    def done(self, frame: bytes) -> list[bytes]:
        """Return the frames that a device makes of it. ValueError for segments of other than UDP.

        Each datagram's identification is one more than that of the one before (the kernel's
        inet_gso_segment).
        """
        if not self.segment:
            return [self._summed(frame) if self.checksum_start else frame]
        if self.kind != _UDP_SEGMENTS:
            raise ValueError(f"segmentation: got kind {self.kind}, expected UDP's")
        payload_at = self.checksum_start + _UDP_HEADER
        head, payload = frame[:payload_at], frame[payload_at:]
        parts = [payload[at : at + self.segment] for at in range(0, len(payload), self.segment)]
        return [self._summed(self._datagram(head, part, i)) for i, part in enumerate(parts)]

    def _datagram(self, head: bytes, part: bytes, index: int) -> bytes:
        """Return one datagram, its checksum field the sum of what its pseudo header then is."""
        ip, udp = bytearray(head[_IPV4_AT : self.checksum_start]), head[self.checksum_start :]
        ip[2:4] = _u16(len(ip) + len(udp) + len(part))
        ip[4:6] = _u16(int.from_bytes(ip[4:6]) + index)
        ip[10:12] = bytes(2)
        ip[10:12] = _u16(checksum(bytes(ip)))
        length = _u16(len(udp) + len(part))
        # RFC 1624: of the pseudo header, only the length is another one.
        partial = _u16(~checksum(udp[6:8] + _u16(~int.from_bytes(udp[4:6])) + length))
        return head[:_IPV4_AT] + bytes(ip) + udp[:4] + length + partial + part

    def _summed(self, frame: bytes) -> bytes:
        """Return the frame with its checksum in place; 0 would mean none (RFC 768)."""
        at = self.checksum_start + self.checksum_offset
        total = checksum(frame[self.checksum_start :]) or _MOST
        return frame[:at] + _u16(total) + frame[at + 2 :]


def _u16(number: int) -> bytes:
    return struct.pack("!H", number & 0xFFFF)
