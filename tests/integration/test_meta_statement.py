"""A prepared statement's messages, read by ourselves: the large ones too, in time that grows with their size."""

from __future__ import annotations

import contextlib

import pytest

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
    assert sum(joined) > 3 * _SIZE
    assert len(joined) < 20
