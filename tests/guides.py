"""The guides' links: where each leads, as a page of Markdown on disk shows it."""

import re
from collections.abc import Iterator
from pathlib import Path

_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_CODE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


def dead_links(guide: Path) -> list[str]:
    """Return the links of a guide to no file beside it, or to no heading of that."""
    return [target for target in _targets(guide) if not _leads(guide, target)]


def _targets(guide: Path) -> Iterator[str]:
    for target in _LINK.findall(_CODE.sub("", guide.read_text())):
        if "://" not in target:
            yield target


def _leads(guide: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    page = guide.parent / name if name else guide
    return page.is_file() and (not anchor or anchor in _anchors(page))


def _anchors(page: Path) -> set[str]:
    """Return what headings are called in links: as GitHub and most others make it of them."""
    headings = _HEADING.findall(_CODE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
