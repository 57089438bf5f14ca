"""Programs of this machine, run to their end."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from vm.errors import VmError

_TAIL = 2000  # characters of what a failed program said


def run(command: Sequence[str | Path], *, stdin: bytes = b"", cwd: Path | None = None) -> str:
    """Return what a program printed. Raises VmError with its last words if it failed."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, check=False)
    except FileNotFoundError as error:
        raise VmError(f"{command[0]} is not installed") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace")[-_TAIL:]
        raise VmError(f"{' '.join(map(str, command))}: exit {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")
