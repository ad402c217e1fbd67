"""The README says what is."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from distfs import cli, errors, http_app

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


def test_every_call_is_in_the_table_of_calls() -> None:
    named = set()
    for cell in first_cells("HTTP"):
        methods = re.findall(r"\b(?:GET|HEAD|POST|PUT|PATCH|DELETE)\b", cell)
        paths = re.findall(r"(?<=[` ])/[^\s`?]*", cell)
        named |= {(method, path) for method in methods for path in paths}
    routes = {(method, re.sub(r"<\w+:", "<", path)) for method, path, *_ in http_app._ROUTES}
    missing = routes - named - {("GET", "/")}  # which says in the terminal what the README says
    assert not missing


def test_every_status_of_an_error_is_told() -> None:
    section = (ROOT / "README.md").read_text().split("\n## HTTP\n")[1].split("\n## ")[0]
    left, statuses = [errors.DistfsError], set()
    while left:
        kind = left.pop()
        statuses.add(kind.status)
        left.extend(kind.__subclasses__())
    nobody_reads = {errors.ClientGone.status}
    assert {status for status in statuses if f"`{status}`" not in section} == nobody_reads


def test_every_command_is_in_the_table_of_commands() -> None:
    named = {
        command
        for cell in first_cells("The operator's commands")
        for command in re.findall(r"`(?:distfs )?([\w-]+)", cell)
    }
    [commands] = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    missing = set(commands.choices) - named
    assert not missing


def first_cells(heading: str) -> Iterator[str]:
    """Of each row of the first table below a heading."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1]
    table = re.search(r"^\|.*?\n(?!\|)", section, re.DOTALL | re.MULTILINE)
    assert table is not None
    for row in table[0].splitlines()[2:]:
        yield row.split(" | ")[0]
