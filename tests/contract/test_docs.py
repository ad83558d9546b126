"""Checks that the documentation matches the code: generated pages, settings and links."""

import re
from pathlib import Path

from deploy.local import generated_docs, settings_reference
from tests.contract import docs_links


def test_generated_documents_are_current() -> None:
    assert generated_docs.not_current() == [], "run `make contracts`"


def test_every_setting_has_a_description() -> None:
    groups = settings_reference.settings_by_group().values()
    assert [setting.name for group in groups for setting in group if not setting.meaning] == []


def test_every_setting_is_one_row_and_numbers_are_written_out() -> None:
    names = re.findall(r"^\| `(\w+)` \|", settings_reference.settings_page(), re.MULTILINE)
    assert len(names) > 50
    assert len(names) == len(set(names))
    assert "e+0" not in settings_reference.settings_page()


def test_no_link_in_the_docs_is_dead() -> None:
    assert docs_links.dead_links() == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading: with `code`\n\n# Twice\n\n# Twice\n")
    (tmp_path / "page.md").write_text(
        "[fine](there.md) [also](there.md#a-heading-with-code) [second](there.md#twice-1) [web](https://example.com)\n"
        "`[code](not-a-link.md)` [gone](gone.md) [no heading](there.md#nothing)\n\n[ref]: lost.md\n"
        "`services/lost.py`\n"
    )
    assert docs_links.dead_links(tmp_path) == [
        "page.md: services/lost.py",
        "page.md: gone.md",
        "page.md: there.md#nothing",
        "page.md: lost.md",
    ]
