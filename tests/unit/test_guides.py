"""The guides as files: that their links lead somewhere."""

from pathlib import Path

import pytest
from guides import dead_links

REPOSITORY = Path(__file__).parents[2]
GUIDES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_every_link_leads_to_a_file_and_a_heading(guide: Path) -> None:
    assert dead_links(guide) == []


def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A page: of `two`\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[1](there.md) [2](there.md#a-page-of-two) [3](https://example.org/x) [4](gone.md)"
        " [5](there.md#no-heading) [6](#here)\n"
    )
    assert dead_links(page) == ["gone.md", "there.md#no-heading", "#here"]
