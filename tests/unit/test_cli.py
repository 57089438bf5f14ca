"""The operator's command line, as far as it needs no network."""

from pathlib import Path

import pytest
from kersey_control import cli
from kersey_control.errors import AlreadyRunningError, KerseyError
from kersey_control.flags import UsageError
from kersey_control.lock import sole_user


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["--help"], {})
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in cli.COMMANDS)


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run([], {})
    assert "Usage: kersey COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_each_command_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run([name, "--help"], {})
    assert capsys.readouterr().out.startswith(f"Usage: kersey {name} [flags]\n")


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["version"], {})
    assert capsys.readouterr().out.startswith("kersey 0.")


def test_an_unknown_command_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="got 'lease', expected one of version, status"):
        cli.run(["lease"], {})


def test_cleanup_asks_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(KerseyError, match="expected root"):
        cli.run(["cleanup"], {})


def test_the_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    subnet_file = tmp_path / "run" / "subnet.env"
    with sole_user(subnet_file), pytest.raises(AlreadyRunningError), sole_user(subnet_file):
        pass
    with sole_user(subnet_file):
        pass
