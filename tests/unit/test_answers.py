"""What was made of MetaDB's answers: of the same words again, and of no others."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID, uuid4

from distfs.metadb.answers import LONGEST, MOST, Answers, Rows

ID = UUID(int=7)


def as_made(id: UUID, rows: Rows) -> Rows:
    return [[id, *rows[0]]]


def test_the_same_words_are_read_once_and_other_words_anew() -> None:
    answers, about = Answers(as_made), {"id": ID}
    assert answers.known(about, b"one") is None
    made = answers.made(about, [[1]], b"one")
    assert made == [[ID, 1]]
    assert answers.known(about, b"one") is made
    assert answers.known(about, b"two") is None
    assert answers.made(about, [[2]], b"two") == [[ID, 2]]
    assert answers.known(about, b"one") is None


def test_the_same_words_about_another_are_another() -> None:
    """Two files of no bytes that came with one request have the same row."""
    answers = Answers(as_made)
    answers.made({"id": ID}, [[1]], b"one")
    assert answers.known({"id": uuid4()}, b"one") is None


def test_what_is_nothing_or_long_or_says_more_than_rows_is_not_kept() -> None:
    answers, about = Answers(as_made), {"id": ID}
    assert answers.made(about, [], b"") == []
    assert answers.made(about, [[1]], None) == [[ID, 1]]
    assert answers.known(about, b"") is None
    long = bytes(LONGEST + 1)
    assert answers.made(about, [[1]], long) == [[ID, 1]]
    assert answers.known(about, long) is None


def test_no_more_than_so_many_are_kept() -> None:
    answers = Answers(as_made)
    for number in range(MOST + 2):
        answers.made({"id": UUID(int=number)}, [[number]], b"x")
        answers.made({"id": UUID(int=number)}, [[number]], b"x")
    kept = [n for n in range(MOST + 2) if answers.known({"id": UUID(int=n)}, b"x") is not None]
    assert kept == list(range(2, MOST + 2))


def test_statements_that_share_what_was_made_have_the_same_columns() -> None:
    text = (Path(__file__).resolve().parents[2] / "sql/queries.sql").read_text("utf-8")
    columns = re.findall(r"-- name: (?:file|file_seen)\n--[^\n]*\nSELECT (.*?)\nFROM", text, re.DOTALL)
    assert len(columns) == 2
    assert columns[0] == columns[1]
