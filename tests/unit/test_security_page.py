"""Each claim of docs/security.md and docs/disaster.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(?:(?P<path>tests/[\w/]+\.py)|(?P<file>test_\w+\.py|…))(?:::(?P<test>test_\w+))?`")


def rows(page: str) -> list[str]:
    """The last cell of each row of a table."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return [line.split(" | ")[-1] for line in lines if line.startswith("| ") and "shown by" not in line]


@pytest.mark.parametrize("page", ["security.md", "disaster.md"])
def test_each_test_that_is_named_is_there(page: str) -> None:
    missing = []
    for row in rows(page):
        file: Path | None = None
        for named in NAMED.finditer(row):
            if named["path"]:
                file = ROOT / named["path"]
            elif named["file"] != "…":
                file = next((ROOT / "tests").rglob(named["file"]), None)
            if (
                file is None
                or not file.is_file()
                or (named["test"] and f"def {named['test']}(" not in file.read_text())
            ):
                missing.append(named[0])
    assert not missing


def test_each_claim_has_one() -> None:
    assert len(rows("security.md")) > 20
    assert not [row for row in rows("security.md") if not NAMED.search(row) and "target" not in row]


def test_each_disaster_but_the_last_has_one() -> None:
    found = rows("disaster.md")
    assert len(found) > 8
    assert all(NAMED.search(row) for row in found[:-1])
