"""Programs on devices: clsact and one direct-action filter of ours, replaced under RCU.

Every filter has our priority, our name and the handle of its network, so that ours are found again
and those of others are never touched. A filter stays when the process goes. Nothing here reads or
writes maps.
"""

import errno
import logging
from enum import IntEnum
from types import TracebackType
from typing import Any, NamedTuple, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kersey_loader.errors import AttachError

logger = logging.getLogger(__name__)

PRIORITY = 0x4B52
NAME_PREFIX = "kersey:"

_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
_GONE = (errno.ENOENT, errno.EINVAL, errno.ENODEV)


class Direction(IntEnum):
    """The two hooks of clsact, by the parent handle of their filters."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


class Attachment(NamedTuple):
    """A filter of ours that is on a device now."""

    ifindex: int
    direction: Direction
    program: str


class Attacher:
    """One netlink socket for all filters of one network; a context manager."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._netlink = IPRoute()

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
        """Close the socket; filters stay."""
        self._netlink.close()

    def attach(self, ifindex: int, direction: Direction, *, program: str, fd: int) -> None:
        """Put a program on a hook, or in the place of ours that is there, without a gap.

        Raises AttachError, also if the device is gone.
        """
        try:
            self._ensure_clsact(ifindex)
            self._netlink.tc(
                "replace-filter",
                "bpf",
                ifindex,
                self._handle,
                parent=direction,
                prio=PRIORITY,
                protocol=_ALL_PROTOCOLS,
                fd=fd,
                name=NAME_PREFIX + program,
                direct_action=True,
            )
        except NetlinkError as error:
            raise AttachError(f"cannot attach {program} to device {ifindex}: {error}") from error

    def detach(self, ifindex: int, direction: Direction) -> None:
        """Take our filter off a hook; clsact stays, others may use it. Without it, does nothing."""
        try:
            self._netlink.tc(
                "del-filter",
                "bpf",
                ifindex,
                self._handle,
                parent=direction,
                prio=PRIORITY,
                protocol=_ALL_PROTOCOLS,
            )
        except NetlinkError as error:
            if error.code not in _GONE:
                raise AttachError(f"cannot detach from device {ifindex}: {error}") from error

    def attached(self, ifindex: int) -> tuple[Attachment, ...]:
        """Return our filters on a device; none if the device is gone."""
        found = []
        for direction in Direction:
            for message in self._filters(ifindex, direction):
                name = _program_name(message)
                if name is not None and message["handle"] == self._handle:
                    found.append(Attachment(ifindex, direction, name))
        return tuple(found)

    def all_attached(self) -> tuple[Attachment, ...]:
        """Return our filters on every device of this network namespace."""
        links = self._netlink.get_links()
        return tuple(found for link in links for found in self.attached(link["index"]))

    def _ensure_clsact(self, ifindex: int) -> None:
        try:
            self._netlink.tc("add", "clsact", ifindex)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise

    def _filters(self, ifindex: int, direction: Direction) -> list[Any]:
        try:
            return list(self._netlink.get_filters(index=ifindex, parent=direction))
        except NetlinkError as error:
            if error.code in _GONE:
                return []
            raise AttachError(f"cannot list filters of device {ifindex}: {error}") from error


def _program_name(message: Any) -> str | None:
    options = message.get_attr("TCA_OPTIONS")
    name = options.get_attr("TCA_BPF_NAME") if options is not None else None
    if not isinstance(name, str) or not name.startswith(NAME_PREFIX):
        return None
    return name.removeprefix(NAME_PREFIX)
