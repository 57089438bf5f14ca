"""The Debian package, built once for all tests of this folder."""

import subprocess

import pytest
from debian_package import WHEELS, Package, build


@pytest.fixture(scope="package")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Build the package from this repository."""
    if not WHEELS.is_dir():
        pytest.skip(f"missing: {WHEELS}")
    folder = tmp_path_factory.mktemp("package")
    path, tree = build(folder), folder / "tree"
    subprocess.run(["dpkg-deb", "--extract", path, tree], check=True, timeout=60)
    return Package(path, tree)
