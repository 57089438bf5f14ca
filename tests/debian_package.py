"""The Debian package as this repository builds it, without a network."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent

WHEELS = Path(sys.prefix) / "wheels"
"""What Kersey depends on; scripts/lib/install.sh makes it with the virtual environment."""


@dataclass(frozen=True, slots=True)
class Package:
    """A built package, and its files as they are installed."""

    path: Path
    tree: Path


def build(to: Path, *options: str, cwd: Path = Path("/")) -> Path:
    """Build the package into a folder and return it."""
    script = _REPOSITORY / "scripts" / "build-package"
    done = subprocess.run(
        [script, "--wheels", WHEELS, "--to", to, *options],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return Path(done.stdout.strip())
