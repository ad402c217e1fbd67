"""Each claim of docs/security.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(?:(?P<path>tests/[\w/]+\.py)|(?P<file>test_\w+\.py|…)(?:::(?P<test>test_\w+))?)`")


def rows() -> list[str]:
    """The second cell of each row of a table."""
    lines = (ROOT / "docs/security.md").read_text().splitlines()
    return [line.split(" | ")[-1] for line in lines if line.startswith("| ") and "shown by" not in line]


def test_each_test_that_is_named_is_there() -> None:
    missing = []
    for row in rows():
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
    assert len(rows()) > 20
    assert not [row for row in rows() if not NAMED.search(row) and "target" not in row]
