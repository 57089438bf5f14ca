"""The Debian package, built once for all tests of this folder."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[2]
_WHEELS = Path(sys.prefix) / "wheels"
"""Made with the virtual environment by scripts/lib/install.sh."""


@dataclass(frozen=True, slots=True)
class Package:
    """A built package, and its files as they are installed."""

    path: Path
    tree: Path


def build(to: Path, *options: str, cwd: Path = Path("/")) -> Path:
    """Build the package into a folder and return it."""
    script = _REPOSITORY / "scripts" / "build-package"
    done = subprocess.run(
        [script, "--wheels", _WHEELS, "--to", to, *options],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return Path(done.stdout.strip())


@pytest.fixture(scope="package")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Build the package from this repository."""
    if not _WHEELS.is_dir():
        pytest.skip(f"missing: {_WHEELS}")
    folder = tmp_path_factory.mktemp("package")
    path, tree = build(folder), folder / "tree"
    subprocess.run(["dpkg-deb", "--extract", path, tree], check=True, timeout=60)
    return Package(path, tree)
