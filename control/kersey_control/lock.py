"""The lock beside the subnet file: one daemon at a time, and no clean-up under a running one."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kersey_control.errors import AlreadyRunningError, InvalidInputError


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
        yield path
