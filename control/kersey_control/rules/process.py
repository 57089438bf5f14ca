"""Run the distribution's packet-filter programs: argument lists, a time limit, and named errors.

It never goes through a shell and never interprets what a program says beyond its exit status.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from kersey_control.errors import KernelError

_TIME_LIMIT = 30.0
"""Seconds; far above the bounded wait for the xtables lock and any table that we have seen."""

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where these programs live; a service's PATH does not always say so."""


class Answer(NamedTuple):
    """How a program ended, and what it wrote."""

    status: int
    output: str
    error: str


def is_installed(program: str) -> bool:
    """Return whether `program` can be run here."""
    return shutil.which(program, path=_environment()["PATH"]) is not None


def ask(argv: Sequence[str], *, package: str, stdin: str = "") -> Answer:
    """Run a program whose failure can be an answer.

    Raises KernelError if it is not installed, naming the package that has it, or takes too long.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIME_LIMIT,
            env=_environment(),
            check=False,
        )
    except FileNotFoundError:
        raise KernelError(f"{argv[0]}: not found, install the package {package!r}") from None
    except OSError as error:
        raise KernelError(f"{argv[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise KernelError(f"{' '.join(argv)}: no answer within {_TIME_LIMIT:g} s") from None
    return Answer(done.returncode, done.stdout, done.stderr)


def run(argv: Sequence[str], *, package: str, stdin: str = "") -> str:
    """Run a program that must succeed and return its output. Raises KernelError with its stderr."""
    return checked(ask(argv, package=package, stdin=stdin), argv)


def checked(answer: Answer, argv: Sequence[str]) -> str:
    """Return a program's output if it succeeded. Raises KernelError with its stderr if not."""
    if answer.status != 0:
        said = " ".join(answer.error.split()) or "no error text"
        raise KernelError(f"{' '.join(argv)}: exit status {answer.status}: {said}")
    return answer.output


def _environment() -> dict[str, str]:
    path = os.environ.get("PATH", "/usr/bin:/bin")
    return {**os.environ, "PATH": f"{path}:{_SBIN}", "LC_ALL": "C"}
