"""What a request costs MetaDB does not grow with what is kept there, whatever was there when it was planned; and it
takes one round trip."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any
from uuid import UUID, uuid4

import pytest

from distfs.errors import NotFound
from distfs.meta import MetaDB
from distfs.metadb.db_socket import DBSocket
from distfs.model import NewFile
from tests.integration.meta_examples import new_file, soon
from tests.postgres import run_sql

#: A prepared statement keeps the plan that its sixth run made.
PLANNED = 10
KEPT = ["file", "slice", "trash", "trash_slice"]

Request = Callable[[MetaDB, UUID], object]


def _there_and_back(meta: MetaDB, id: UUID) -> None:
    meta.delete_file(id, soon())
    meta.undelete_file(id, soon())


REQUESTS: dict[str, Request] = {
    "get": lambda meta, id: meta.file(id, soon()),
    "put": lambda meta, _: meta.commit_files([new_file()], soon()),
    "delete and undelete": _there_and_back,
    "list": lambda meta, _: meta.list_files(uuid4(), 3, soon()),
}


def committed(meta: MetaDB, count: int) -> list[NewFile]:
    files = [new_file() for _ in range(count)]
    meta.commit_files(files, soon())
    return files


def rows_read(meta: MetaDB) -> int:
    """Of files and slices, in tables and in indexes, by whomever."""
    with meta._pool.link(soon()) as link:
        link.raw.run("SELECT pg_stat_force_next_flush()")
        [[rows]] = link.raw.run(
            """SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname = ANY (:kept))::bigint
                + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = ANY (:kept))::bigint""",
            kept=KEPT,
        )
    return int(rows)


@pytest.mark.parametrize("request_of", REQUESTS.values(), ids=REQUESTS.keys())
def test_no_request_reads_through_a_table_that_was_small_once(
    meta: MetaDB, metadb_url: str, request_of: Request
) -> None:
    """It was planned when a look at the only page was the quickest, and the table has grown since."""
    file, gone, *_ = committed(meta, 20)
    meta.delete_file(gone.id, soon())
    run_sql(metadb_url, "ANALYZE")
    for _ in range(PLANNED):
        request_of(meta, file.id)
    committed(meta, 200)
    before = rows_read(meta)
    for _ in range(PLANNED):
        request_of(meta, file.id)
    assert rows_read(meta) - before < 20 * PLANNED


@pytest.mark.parametrize("request_of", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_statement_is_one_message_and_its_answer_another(meta: MetaDB, request_of: Request) -> None:
    [file] = committed(meta, 1)
    for _ in range(PLANNED):
        request_of(meta, file.id)
    calls: list[str] = []

    def note(_: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and isinstance(getattr(called, "__self__", None), DBSocket):
            calls.append(called.__name__)

    sys.setprofile(note)
    try:
        request_of(meta, file.id)
    finally:
        sys.setprofile(None)
    assert calls == ["send", "recv_into"] * (2 if request_of is REQUESTS["delete and undelete"] else 1)


def test_a_file_that_is_not_seen_is_looked_for_as_one_that_is_not_there(meta: MetaDB) -> None:
    """As many rows are fetched: who times the answers learns nothing."""
    files = committed(meta, 20)
    there = min(file.id for file in files)
    between = UUID(int=there.int - 1)

    def fetched(id: UUID) -> tuple[int, int]:
        before = _looks(meta)
        for _ in range(PLANNED):
            with pytest.raises(NotFound):
                meta.file(id, soon(), "a stranger")
        scans, rows = (now - then for now, then in zip(_looks(meta), before, strict=True))
        return scans, rows

    assert fetched(there) == fetched(between) == (PLANNED, PLANNED)


def _looks(meta: MetaDB) -> tuple[int, int]:
    """At files by an index: how often, and how many rows were fetched."""
    with meta._pool.link(soon()) as link:
        link.raw.run("SELECT pg_stat_force_next_flush()")
        [[scans, rows]] = link.raw.run(
            "SELECT idx_scan, idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'file'"
        )
    return int(scans), int(rows)
