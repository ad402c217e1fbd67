"""What a message names is there: commands and flags, settings, packages. Every string of the source is read."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from distfs import cli, storage_server
from distfs.config.settings import Config
from distfs.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    f"{section.name}.{key.name}"
    for section in fields(Config)
    for key in fields(type(getattr(Config(), section.name)))
}
SECTIONS = "|".join(section.name for section in fields(Config))
KEYS = {key.partition(".")[2] for key in SETTINGS}
#: Stands for what is filled in when the message is made.
HOLE = "1"


class Message(NamedTuple):
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@cache
def messages() -> tuple[Message, ...]:
    """Every string of the product that has a blank in it: docstrings and mere words are none."""
    return tuple(
        Message(f"{path.relative_to(ROOT)}:{line}", text)
        for path in sorted((ROOT / "distfs").rglob("*.py"))
        for line, text in _texts(ast.parse(path.read_text("utf-8")))
        if " " in text
    )


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            skipped |= {id(each.value) for each in node.body if isinstance(each, ast.Expr)}
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values if isinstance(part, ast.Constant)}
            yield node.lineno, "".join(_part(part) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def _part(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else HOLE


def found(pattern: str, least: int) -> list[tuple[Message, str]]:
    """What the pattern's group finds in messages, where it finds at least so much: a pattern that finds nothing
    proves nothing."""
    all_of_them = [(m, hit[1]) for m in messages() for hit in re.finditer(pattern, m.text)]
    assert len(all_of_them) >= least, f"only {len(all_of_them)} for {pattern}"
    return all_of_them


def parses(parse: Callable[[list[str]], object], words: list[str]) -> bool:
    """Whether a command takes these words, or would with one more: the node, the file that a sentence names."""
    for more in ([], ["1"]):
        try:
            parse([*words, *more])
            return True
        except (SystemExit, ConfigError):
            pass
    return False


def test_every_command_that_a_message_names_is_taken_as_it_is_written() -> None:
    parser = cli._parser()
    wrong = [
        str(m)
        for m, command in found("`distfs ([^`]+)`", 30)
        if not parses(parser.parse_args, shlex.split(command))
    ]
    assert not wrong, "\n".join(wrong)


def test_a_command_in_a_message_is_marked_as_one() -> None:
    """So that it can be told from a sentence, by people and by the test above."""
    names = "|".join(cli._parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr, arg-type]
    wrong = [str(m) for m in messages() if re.search(rf"(?<![`\w/.])distfs ({names})\b", m.text)]
    assert not wrong, "\n".join(wrong)


def test_every_module_that_a_message_has_started_takes_those_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    modules = {"storage_server": storage_server._arguments}
    wrong = []
    for m, command in found(r"python -m distfs\.(storage_server [^`;\n]+)", 3):
        module, *words = shlex.split(command.replace("PORT", "0"))
        if not parses(modules[module], words):
            wrong.append(str(m))
    assert not wrong, "\n".join(wrong)


FLAGS_ARE_IN = (
    "cli.py",
    "storage_server.py",
    *(f"commands/{p.name}" for p in (ROOT / "distfs/commands").glob("*.py")),
)


def test_every_flag_that_a_message_names_is_one_of_a_command() -> None:
    sources = [ROOT / "distfs" / name for name in FLAGS_ARE_IN]
    flags = {f for path in sources for f in re.findall(r'"(--[a-z-]+)"', path.read_text("utf-8"))}
    flags |= {"--help", "--long", "--ultra"}  # the last two are zstd's own
    wrong = [str(m) for m, flag in found(r"(?<![\w-])(--[a-z][a-z-]*)", 30) if flag not in flags]
    assert not wrong, "\n".join(wrong)


def test_every_setting_that_a_message_names_is_one() -> None:
    named = rf"(?<![\w.])((?:{SECTIONS})\.[a-z_]+)\b(?!\.log)"
    files = {"node.json", "metrics.md", "http.md"}
    wrong = [str(m) for m, key in found(named, 80) if key not in SETTINGS | files]
    assert not wrong, "\n".join(wrong)


def test_a_setting_is_named_with_its_section() -> None:
    """Without it, it is not found in the file, and may be another's."""
    wrong = [
        str(m)
        for m, key in found(r"(?<![\w.?])([a-z]+_[a-z_]+)\b(?!\.)", 5)
        if key in KEYS and not SQL.match(m.text) and not m.place.startswith(IN_A_RULE)
    ]
    assert not wrong, "\n".join(wrong)


#: Where a row of callers.rules is shown, key by key.
IN_A_RULE = "distfs/config/settings.py"
SQL = re.compile("SELECT |SET ")


def test_every_variable_that_a_message_names_is_a_setting() -> None:
    variables = {f"DISTFS_{key.replace('.', '_').upper()}" for key in SETTINGS}
    text = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "distfs").rglob("*.py")))
    named = set(re.findall(r"\b(DISTFS_[A-Z]+_[A-Z_]*[A-Z])\b", text))
    assert named
    assert named <= variables


def test_every_extra_that_a_message_names_can_be_installed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = [
        name
        for _, listed in found(r"pip install '(?:distfs|\.)\[([a-z,]+)\]'", 3)
        for name in listed.split(",")
    ]
    assert set(named) <= extras.keys()
    assert len(found("(pip install)", 3)) == len(found(r"(pip install '(?:distfs|\.)\[)", 3))


#: What programs say to each other, where each byte counts and nobody adds a remedy.
FORMATS = (
    "distfs/formats/",
    "distfs/fragment_store",
    "distfs/wire_socket",
    "distfs/peers/",
    "distfs/storage/connection",
    "distfs/storage/disk/store",
    "distfs/transfer/slice_read",
    "distfs/transfer/block_read",
    "distfs/host/response",
    "distfs/http_app",
    "distfs/quantity",
)


def test_people_are_told_sizes_with_a_unit_that_fits_them() -> None:
    """``quantity.size`` writes them: 413 of 10485760000 bytes is nothing that anybody reads."""
    wrong = [str(m) for m, _ in found(rf"((?:{HOLE}|%[ds]) bytes)", 5) if not m.place.startswith(FORMATS)]
    assert not wrong, "\n".join(wrong)
