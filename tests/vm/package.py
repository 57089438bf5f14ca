"""Kersey's package as the machines get it: two builds of one version, to upgrade from and to."""

from pathlib import Path

from vm.command import run

_REPOSITORY = Path(__file__).resolve().parents[2]


def build_packages(directory: Path) -> tuple[Path, Path]:
    """Return two packages of the checkout, the older first, from one set of wheels.

    Raises VmError.
    """
    wheels = directory / "wheels"
    run([_REPOSITORY / "deploy/image/build-wheels", wheels])
    return _build(directory, wheels, "1"), _build(directory, wheels, "2")


def _build(directory: Path, wheels: Path, revision: str) -> Path:
    build = _REPOSITORY / "scripts/build-package"
    printed = run([build, "--revision", revision, "--wheels", wheels, "--to", directory])
    return Path(printed.splitlines()[-1])
