"""Programs on devices by TCX links (kernel 6.6): attached without touching the device's queues.

Making or removing a clsact queueing discipline stops the device for some milliseconds: 5 to 20 of
8,000 packets a second were lost each time, measured here. A TCX link needs none. Each is pinned
under the device and hook that it is for: that pin alone says what is ours, so that a program is
replaced in its place and never attached twice. A link whose device went is replaced or removed.
"""

import errno
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from kersey_loader.attach import Attachment, Direction, FilterHooks
from kersey_loader.bpf import (
    Descriptor,
    create_link,
    detach_link,
    link_info,
    open_pin,
    pin,
    program_name,
    query_tcx,
    update_link,
)
from kersey_loader.errors import AttachError, BpfError

ATTACH_TYPE = {Direction.INGRESS: 46, Direction.EGRESS: 47}
"""BPF_TCX_INGRESS and BPF_TCX_EGRESS of include/uapi/linux/bpf.h."""

_LOOPBACK = 1


def is_supported() -> bool:
    """Return whether the kernel has TCX; asks about the loopback device, changes nothing."""
    try:
        query_tcx(_LOOPBACK, ATTACH_TYPE[Direction.INGRESS])
    except BpfError as error:
        return error.code == errno.ENOENT  # known hook, nothing on it
    return True


def remove_link(path: Path) -> None:
    """Detach the link pinned at `path`, if any, and remove the pin. Raises BpfError, OSError."""
    fd = open_pin(path)
    if fd is not None:
        with Descriptor(fd) as link:
            detach_link(link.fd)
        path.unlink(missing_ok=True)


class TcxHooks:
    """The links of one network, pinned in `home` on bpffs. A context manager; links stay.

    Works in the network namespace of the calling thread.
    """

    def __init__(self, home: Path, filters: FilterHooks) -> None:
        self._home = home
        self._filters = filters  # of a version of ours that knew no links

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; links stay."""
        self._filters.close()

    def attach(self, ifindex: int, direction: Direction, *, program: str, fd: int) -> None:
        """Put a program on a hook, or in the place of ours that is there, without a gap.

        Raises AttachError, also if the device is gone.
        """
        path = self._path(ifindex, direction)
        try:
            if not self._replaced(path, ifindex, fd):
                path.unlink(missing_ok=True)
                self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
                with Descriptor(create_link(fd, ifindex, ATTACH_TYPE[direction])) as link:
                    pin(link.fd, path)
                self._filters.detach(ifindex, direction)
        except (BpfError, OSError) as error:
            raise AttachError(f"cannot attach {program} to device {ifindex}: {error}") from error

    def detach(self, ifindex: int, direction: Direction) -> None:
        """Take our program off a hook. Without it, does nothing. Raises AttachError."""
        try:
            remove_link(self._path(ifindex, direction))
        except (BpfError, OSError) as error:
            raise AttachError(f"cannot detach from device {ifindex}: {error}") from error

    def attached(self, ifindex: int) -> tuple[Attachment, ...]:
        """Return what is ours on a device; nothing if the device is gone."""
        return tuple(found for found in self.all_attached() if found.ifindex == ifindex)

    def all_attached(self) -> tuple[Attachment, ...]:
        """Return every live link, and remove the pins of those whose device is gone."""
        return tuple(found for found, _ in self._living())

    def retire(self, current: frozenset[int]) -> None:
        """Take off our links with other programs than those of the ids. Raises AttachError.

        The pins of links whose device is gone go as well.
        """
        for found, program in list(self._living()):
            if program not in current:
                self.detach(found.ifindex, found.direction)
        self._filters.retire(current)

    def _living(self) -> Iterator[tuple[Attachment, int]]:
        """Yield every live link with the id of its program; the pins of others go."""
        for path in list(self._home.glob("*-*")):
            ifindex, _, hook = path.name.partition("-")
            if hook.upper() not in Direction.__members__:
                continue  # the uplink's XDP link, see xdp
            fd = open_pin(path)
            if fd is None:
                continue
            with Descriptor(fd) as link:
                info = link_info(link.fd)
            if info.ifindex != int(ifindex):
                path.unlink(missing_ok=True)
            else:
                name = program_name(info.program)
                found = Attachment(int(ifindex), Direction[hook.upper()], name)
                yield found, info.program

    def _replaced(self, path: Path, ifindex: int, fd: int) -> bool:
        """Replace the program in our link; return whether there is a link on the live device."""
        known = open_pin(path)
        if known is None:
            return False
        with Descriptor(known) as link:
            if link_info(link.fd).ifindex != ifindex:
                return False
            update_link(link.fd, fd)
        return True

    def _path(self, ifindex: int, direction: Direction) -> Path:
        return self._home / f"{ifindex}-{direction.name.lower()}"
