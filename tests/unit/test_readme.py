"""The README and its pages say what is."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from distfs import cli, errors, http_app

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_shipped_configuration() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    shown = re.search(r"```yaml\n(.*?)\n```", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == (ROOT / "config.yml").read_text().rstrip("\n")


def test_every_make_target_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named
    assert named <= targets


def test_every_call_is_in_the_table_of_calls() -> None:
    named = set()
    for cell in first_cells("docs/http.md"):
        methods = re.findall(r"\b(?:GET|HEAD|POST|PUT|PATCH|DELETE)\b", cell)
        paths = re.findall(r"(?<=[` ])/[^\s`?]*", cell)
        named |= {(method, path) for method in methods for path in paths}
    routes = {(method, re.sub(r"<\w+:", "<", path)) for method, path, *_ in http_app._ROUTES}
    missing = routes - named - {("GET", "/")}  # which says in the terminal what the README says
    assert not missing


def test_every_status_of_an_error_is_told() -> None:
    page = (ROOT / "docs/http.md").read_text()
    left, statuses = [errors.DistfsError], set()
    while left:
        kind = left.pop()
        statuses.add(kind.status)
        left.extend(kind.__subclasses__())
    nobody_reads = {errors.ClientGone.status}
    assert {status for status in statuses if f"`{status}`" not in page} == nobody_reads


def test_every_command_is_in_the_table_of_commands() -> None:
    named = {
        command
        for cell in first_cells("docs/commands.md")
        for command in re.findall(r"`(?:distfs )?([\w-]+)", cell)
    }
    [commands] = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    missing = set(commands.choices) - named
    assert not missing


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        there = page.parent / path if path else page
        assert there.exists(), path
        assert not anchor or anchor in anchors(there.read_text()), f"{path}#{anchor}"


def test_the_readme_leads_to_every_page() -> None:
    """To those for users, that is; they and the page of the design lead to the others."""
    led_to = {there for page in PAGES for there in re.findall(r"\]\(([^)#\s]*\.md)", page.read_text())}
    assert {page.name for page in PAGES} == {Path(there).name for there in led_to}


def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def first_cells(page: str) -> Iterator[str]:
    """Of each row of a page's first table."""
    table = re.search(r"^\|.*?\n(?!\|)", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert table is not None
    for row in table[0].splitlines()[2:]:
        yield row.split(" | ")[0]
