"""The README says what is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_shipped_configuration() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"```yaml\n(.*?)\n```", readme, re.DOTALL)
    assert shown is not None
    assert shown[1] == (ROOT / "config.yml").read_text().rstrip("\n")


def test_every_make_target_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named
    assert named <= targets
