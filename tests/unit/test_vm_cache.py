"""What is expensive to make is made once, whole or not at all."""

from pathlib import Path

import pytest
from vm.cache import cached, fingerprint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kersey" / "vm"


def test_second_run_takes_what_the_first_has_made() -> None:
    made: list[Path] = []

    def build(directory: Path) -> None:
        made.append(directory)
        (directory / "disk").write_text("whole")

    assert cached("image-1", build) == cached("image-1", build)
    assert (cached("image-1", build) / "disk").read_text() == "whole"
    assert len(made) == 1


def test_what_is_half_made_leaves_nothing_and_is_made_again(cache: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "disk").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached("image-1", fail)
    assert [path.name for path in cache.iterdir()] == ["image-1.lock"]
    assert list(cached("image-1", lambda _: None).iterdir()) == []


def test_another_recipe_has_another_name() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint("ab", "c") == fingerprint("ab", "c")
