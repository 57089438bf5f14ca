"""The commands that a newcomer meets first: each says what it is for, and installs nothing yet."""

import subprocess

import pytest
from manifests import DEPLOY

SCRIPTS = DEPLOY.parent / "scripts"


@pytest.mark.parametrize(
    "name", ["bench", "build-package", "demo", "testbed", "test-vms", "vagrant-check"]
)
def test_help_is_given(name: str) -> None:
    done = subprocess.run(
        [SCRIPTS / name, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.lower().startswith(("usage: ", "usage:\n"))
    assert name in done.stdout
