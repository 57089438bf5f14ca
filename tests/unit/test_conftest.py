"""A skip for something missing fails where CI=true, and nowhere else; other skips never do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def run_suite(directory: Path, source: str, *, ci: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(TESTS / "conftest.py", directory)
    (directory / "test_it.py").write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={directory}", "-rs"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(TESTS), "CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


LACKS_A_PROGRAM = "def test_it(requires): requires('sh', 'no-such-program')"
LACKS_A_MODULE = "import pytest\npytest.skip('missing: kernel', allow_module_level=True)"
SKIPS_ON_PURPOSE = "import pytest\ndef test_it(): pytest.skip('only on big-endian machines')"


@pytest.mark.parametrize("source", [LACKS_A_PROGRAM, LACKS_A_MODULE])
def test_skip_for_something_missing_fails_in_ci(tmp_path: Path, source: str) -> None:
    done = run_suite(tmp_path, source, ci="true")
    assert done.returncode != 0
    assert "nothing may be missing" in done.stdout


@pytest.mark.parametrize("source", [LACKS_A_PROGRAM, SKIPS_ON_PURPOSE])
def test_skip_names_its_reason_and_passes_elsewhere(tmp_path: Path, source: str) -> None:
    done = run_suite(tmp_path, source, ci="")
    assert done.returncode == 0
    assert "1 skipped" in done.stdout
    assert "missing: no-such-program" in done.stdout or "only on big-endian" in done.stdout


def test_skip_on_purpose_passes_in_ci(tmp_path: Path) -> None:
    assert run_suite(tmp_path, SKIPS_ON_PURPOSE, ci="true").returncode == 0
