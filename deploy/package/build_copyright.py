"""Print debian/copyright: Kersey's licence, and that of each package that comes with it.

Argument: the folder that holds them, as pip installed it. Their licence texts stay there, in the
metadata of each. Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
"""

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import PurePosixPath

_HEAD = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: kersey

Files: *
Copyright: Kersey's developers
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.
"""
_INSTALLED = PurePosixPath("/usr/lib/kersey")
_TEXTS = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS")


def texts_of(bundled: Distribution) -> list[str]:
    """Return where the licence texts of a package are once installed."""
    names = [file for file in bundled.files or () if ".dist-info" in file.parts[0]]
    return [str(_INSTALLED / file) for file in names if file.name.startswith(_TEXTS)]


def licence_of(bundled: Distribution) -> str:
    """Return the licence's name as the package gives it. ValueError where it names none."""
    for field in ("License-Expression", "License"):
        if field in bundled.metadata:
            return bundled.metadata[field].splitlines()[0]
    raise ValueError(f"{bundled.name} names no licence")


def paragraphs(folder: str) -> Iterator[str]:
    """Yield a paragraph for each package in the folder but Kersey, by name."""
    found = sorted(distributions(path=[folder]), key=lambda each: each.name.lower())
    for bundled in found:
        if bundled.name == "kersey":
            continue
        texts = texts_of(bundled)
        if not texts:
            raise ValueError(f"{bundled.name} brings no licence text")
        where = "\n".join(f"  {text}" for text in texts)
        yield (
            f"Files: {_INSTALLED}/ ({bundled.name} {bundled.version})\n"
            f"Copyright: as its licence says\n"
            f"License: {licence_of(bundled)}\n Texts:\n{where}\n"
        )


def main(folder: str) -> None:
    """Print the file."""
    print("\n".join([_HEAD, *paragraphs(folder)]), end="")


if __name__ == "__main__":
    main(sys.argv[1])
