"""A prepared statement's messages, read by ourselves: the large ones too, in time that grows with their size."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from uuid import UUID

import pytest

from distfs.metadb.answers import Answers
from distfs.metadb.driver import DatabaseError
from distfs.metadb.link import Link
from distfs.metadb.statement import Statement
from distfs.metadb.url import MetaURL
from tests.integration.meta_examples import soon

_SIZE = 8 << 20


def test_the_pieces_of_a_large_row_are_joined_once(metadb_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined with each piece, a row of 64 MiB took 17 s, with the interpreter's lock held."""
    joined: list[int] = []
    more = Statement._more

    def counted(self: Statement, *least: int) -> bytes:
        data = more(self, *least)
        joined.append(len(data))
        return data

    monkeypatch.setattr(Statement, "_more", counted)
    url = MetaURL.parse(metadb_url)
    with contextlib.closing(Link(url, url.hosts[0], soon(), statement_timeout=60)) as link:
        large = Statement(link.raw, "SELECT n, repeat(n::text, :size) FROM generate_series(1, 3) n")
        assert large.run({"size": _SIZE}) == [[n, str(n) * _SIZE] for n in (1, 2, 3)]
        assert large.run({"size": 1}) == [[1, "1"], [2, "2"], [3, "3"]]
    assert sum(joined) > 2.9 * _SIZE  # all but what came first
    assert len(joined) < 20


#: Of every type that a query of ours returns; what it is in SQL and in Python.
VALUES: dict[str, object] = {
    "'6f1c9ab2-3f0e-4f36-8a53-0d1f6a7b8c9d'::uuid": UUID("6f1c9ab2-3f0e-4f36-8a53-0d1f6a7b8c9d"),
    r"'\x00ff5c'::bytea": b"\0\xff\\",
    "''::bytea": b"",
    "'{7,0,-3}'::integer[]": [7, 0, -3],
    "'{}'::integer[]": [],
    "'{1,NULL,2147483647}'::integer[]": [1, None, 2**31 - 1],
    "'{NULL}'::integer[]": [None],
    "'{1,2}'::bigint[]": [1, 2],
    "32767::smallint": 32767,
    "(-5)::integer": -5,
    "9223372036854775807::bigint": 2**63 - 1,
    "1.5::double precision": 1.5,
    "true": True,
    "'dätei \n 😀'::text": "dätei \n 😀",
    "''::text": "",
    "'x'::name": "x",
    "'[1, {\"a\": null}]'::json": [1, {"a": None}],
    "'2026-11-27 06:05:04.000321+00'::timestamptz": datetime(2026, 11, 27, 6, 5, 4, 321, UTC),
    "NULL::uuid": None,
    "NULL::integer[]": None,
}


def test_values_are_what_the_driver_makes_of_them(metadb_url: str) -> None:
    url = MetaURL.parse(metadb_url)
    sql = f"SELECT {', '.join(VALUES)} FROM generate_series(1, 2)"  # noqa: S608 - nothing is given
    with contextlib.closing(Link(url, url.hosts[0], soon(), statement_timeout=60)) as link:
        rows = Statement(link.raw, sql).run({})
        assert rows == link.raw.run(sql) == [list(VALUES.values())] * 2


@pytest.mark.parametrize(
    "value",
    [
        UUID(int=1 << 127),
        0,
        -(2**63),
        2.5,
        True,
        "",
        "Ü\t'\\",
        b"\0\xff",
        [3, 1],
        datetime(2026, 1, 2, tzinfo=UTC),
    ],
    ids=repr,
)
def test_a_parameter_is_what_was_given(metadb_url: str, value: object) -> None:
    types = {UUID: "uuid", int: "bigint", float: "float", bool: "boolean", str: "text", bytes: "bytea"}
    type_ = types.get(type(value)) or ("integer[]" if isinstance(value, list) else "timestamptz")
    url = MetaURL.parse(metadb_url)
    with contextlib.closing(Link(url, url.hosts[0], soon(), statement_timeout=60)) as link:
        asked = Statement(link.raw, f"SELECT CAST(:value AS {type_}), :other::text, CAST(:value AS {type_})")
        assert asked.run({"value": value, "other": "x"}) == [[value, "x", value]]
        assert asked.run({"value": None, "other": ""}) == [[None, "", None]]


def test_what_the_driver_has_read_ahead_is_the_next_statements(metadb_url: str) -> None:
    """And the reverse: the server says something behind an answer, by itself."""
    url = MetaURL.parse(metadb_url)
    with (
        contextlib.closing(Link(url, url.hosts[0], soon(), statement_timeout=60)) as link,
        contextlib.closing(Link(url, url.hosts[0], soon(), statement_timeout=60)) as other,
    ):
        one = Statement(link.raw, "SELECT 1")
        for run in (lambda: link.raw.run("SELECT 1"), lambda: one.run({})):
            link.raw.run("LISTEN told")
            for _ in range(3):
                other.raw.run("NOTIFY told")
                assert run() == [[1]]
            link.raw.run("UNLISTEN told")
        assert len(link.raw.notifications) == 6


def test_what_an_answer_says_beside_its_rows_is_heard_each_time(metadb_url: str) -> None:
    """The same answer on two connections: each hears of its own settings."""
    url, answers = MetaURL.parse(metadb_url), Answers(lambda id, rows: rows)
    for _ in range(2):
        with contextlib.closing(Link(url, url.hosts[0], soon(), statement_timeout=60)) as link:
            told = Statement(link.raw, "SELECT set_config('application_name', 'told', false), :id::text")
            about = {"id": UUID(int=1)}
            assert told.run(about, answers=answers) == [["told", str(about["id"])]]
            assert link.raw.parameter_statuses["application_name"] == "told"
            plain = Statement(link.raw, "SELECT :id::text")
            other = {"id": UUID(int=2)}
            assert plain.run(other, answers=answers) is plain.run(other, answers=answers)


def test_a_statement_that_fails_behind_rows_leaves_nothing_to_the_next(metadb_url: str) -> None:
    url = MetaURL.parse(metadb_url)
    with contextlib.closing(Link(url, url.hosts[0], soon(), statement_timeout=60)) as link:
        rows = 5000  # more than is read at once
        some = Statement(link.raw, "SELECT n, 7 / (:last - n) FROM generate_series(1, 2 * :last) n")
        for last in (rows, 2, rows):
            with pytest.raises(DatabaseError, match="division by zero"):
                some.run({"last": last})
            assert Statement(link.raw, "SELECT 1").run({}) == [[1]]
        assert some.run({"last": 0}) == []
        assert link.idle
