"""Words and flags of a command may come in any order."""

from __future__ import annotations

import itertools

import pytest

from distfs.process.output import Parser


def parser() -> Parser:
    top = Parser(prog="distfs")
    one = top.add_subparsers().add_parser("token")
    one.add_argument("what", choices=("list", "revoke"))
    one.add_argument("id", nargs="?", type=int)
    one.add_argument("--config")
    one.add_argument("--json", action="store_true")
    return top


@pytest.mark.parametrize(
    "order", list(itertools.permutations([["revoke", "7"], ["--config", "c"], ["--json"]]))
)
def test_flags_may_stand_anywhere(order: tuple[list[str], ...]) -> None:
    given = parser().parse_args(["token", *itertools.chain(*order)])
    assert (given.what, given.id, given.config, given.json) == ("revoke", 7, "c", True)


def test_flags_may_stand_between() -> None:
    given = parser().parse_args(["token", "revoke", "--config", "c", "7", "--json"])
    assert (given.what, given.id, given.config, given.json) == ("revoke", 7, "c", True)
    assert parser().parse_args(["token", "list", "--config", "c"]).id is None


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["revoke", "--json", "7", "8"], "unrecognized arguments: 8"),
        (["revoke", "7", "--json", "8"], "unrecognized arguments: 8"),
        (["revoke", "--json", "seven"], "invalid int value: 'seven'"),
        (["revoke", "--jsom", "7"], "unrecognized arguments: --jsom 7"),
    ],
)
def test_what_is_too_much_or_wrong_is_told(
    words: list[str], wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["token", *words])
    assert wrong in capsys.readouterr().err
