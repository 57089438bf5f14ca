"""One daemon for each subnet file at a time, and no clean-up under any that runs.

The lock beside the subnet file goes by files, wherever these are mounted. What all daemons on a
host share is its network namespace: there each shows itself by an abstract Unix socket, whatever
its folders are, and shows no more once its process has ended.
"""

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kersey_control.errors import AlreadyRunningError, InvalidInputError
from kersey_control.instance import instance_of

_SOCKETS = Path("/proc/net/unix")
_LONGEST = 108  # bytes of a name: struct sockaddr_un
_SHOWN = re.compile(r" @kerseyd/([0-9a-f]{8})(/.*)$", re.MULTILINE)


@contextmanager
def sole_user(subnet_file: Path) -> Iterator[Path]:
    """Hold the lock of `subnet_file`; yield the path of the lock file.

    Two daemons that share a subnet file would undo each other's work. The lock goes with the
    process, however it ends; the file stays. Raises AlreadyRunningError.
    """
    path = subnet_file.with_name(f".{subnet_file.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise InvalidInputError(
            field="subnet-file", value=str(subnet_file), expected=f"a writable folder ({error})"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(
                f"subnet-file: {subnet_file} is used by a running kerseyd; stop that one first, or"
                " name another file"
            ) from None
        with _shown(subnet_file):
            yield path


def expect_no_other(subnet_file: Path) -> None:
    """Raise AlreadyRunningError if a daemon with another subnet file runs on this node."""
    own = instance_of(subnet_file)
    found = _SHOWN.findall(_SOCKETS.read_text(errors="replace"))
    others = {path for number, path in found if int(number, 16) != own}
    if others:
        raise AlreadyRunningError(
            f"subnet-file: got {subnet_file}, expected that no other kerseyd runs on this node:"
            f" stop that of {', '.join(sorted(others))} first, clean-up removes what is its, too"
        )


@contextmanager
def _shown(subnet_file: Path) -> Iterator[None]:
    """Show in this network namespace that somebody works with the subnet file."""
    path = subnet_file.absolute()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as shown:
        with suppress(OSError):  # a stranger may hold the name; nobody is kept from work by that
            shown.bind(os.fsencode(f"\0kerseyd/{instance_of(path):08x}{path}")[:_LONGEST])
        yield
