"""Packages of Debian's suites, from the mirror that this machine's own apt uses.

Promises never to touch the machine's apt: lists and packages go to a directory of their own.
"""

import shutil
from pathlib import Path

from vm.command import run
from vm.errors import VmError

RELEASE = "bookworm"
"""What the machines run; their kernel may be of another suite."""

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_FIELDS = "$(CODENAME) $(COMPONENT) $(REPO_URI)"


def sources(*suites: str) -> tuple[str, ...]:
    """Return the lines of a sources.list for suites such as `bookworm` or `bullseye-security`.

    Raises VmError where this machine's apt knows no mirror of Debian.
    """
    mirrors = _mirrors()
    return tuple(
        f"deb [signed-by={_KEYRING}] {suite_uri(mirrors, suite)} {suite} main" for suite in suites
    )


def default_suites() -> tuple[str, str]:
    """Return the release and its security updates."""
    return RELEASE, f"{RELEASE}-security"


def _mirrors() -> dict[str, str]:
    """Return the address of each suite that apt has lists of."""
    listed = run(["apt-get", "indextargets", "--format", _FIELDS, "Created-By: Packages"])
    found = (line.split() for line in listed.splitlines())
    return {suite: uri for suite, component, uri in found if component == "main"}


def suite_uri(mirrors: dict[str, str], suite: str) -> str:
    """Return where a suite is, from where others are: security suites are in a place of their own.

    Raises VmError where that is not known.
    """
    for known, uri in mirrors.items():
        if known.endswith("-security") == suite.endswith("-security"):
            return uri
    raise VmError(f"no mirror for {suite}: apt of this machine has no list of Debian's packages")


class Archive:
    """An apt with state of its own, in `directory`, for some suites."""

    def __init__(self, directory: Path, *suites: str) -> None:
        self._directory = directory
        for part in ("lists/partial", "archives/partial", "empty.d"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        (directory / "sources.list").write_text("\n".join(sources(*suites)) + "\n")
        self._apt("update")

    def download(self, package: str) -> Path:
        """Return the .deb of `package` (`name`, `name/suite` or `name=version`). Raises VmError."""
        target = self._directory / "archives" / "new"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        self._apt("download", package, cwd=target)
        (found,) = target.iterdir()
        return found.rename(target.parent / found.name)

    def depends(self, package: str) -> list[str]:
        """Return what a package, named as in `download`, depends on: `name (= version)`, ..."""
        shown = self._apt("show", package, program="apt-cache")
        lines = (line.partition(": ") for line in shown.splitlines())
        return next((value.split(", ") for name, _, value in lines if name == "Depends"), [])

    def _apt(self, *arguments: str, program: str = "apt-get", cwd: Path | None = None) -> str:
        options = {
            "Dir::Etc::sourcelist": self._directory / "sources.list",
            "Dir::Etc::sourceparts": self._directory / "empty.d",
            "Dir::State::lists": self._directory / "lists",
            "Dir::Cache": self._directory,
            "APT::Sandbox::User": "root",
        }
        given = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return run([program, "-q", *given, *arguments], cwd=cwd)
