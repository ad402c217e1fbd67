"""A file that is asked for again: mostly one message out, the same answer in. What goes otherwise is as ever."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest

from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline, Scope
from distfs.errors import Cancelled, TooSlow, Unavailable
from distfs.meta import MetaDB
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.model import File
from tests.integration.meta_examples import new_file, soon
from tests.postgres import run_sql

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def single(metadb_url: str) -> Iterator[MetaDB]:
    """With one connection."""
    meta = MetaDB(MetaDBConfig(url=metadb_url, pool_size=1, statement_timeout=Seconds(60)))
    yield meta
    meta.close()


@pytest.fixture
def known(single: MetaDB) -> File:
    """A file that was asked for before."""
    [file] = single.commit_files([new_file()], soon())
    assert single.file(file.id, soon()) == file
    return file


def test_it_takes_few_calls(single: MetaDB, known: File) -> None:
    def count() -> int:
        calls = 0

        def note(_: FrameType, event: str, __: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(note)
        try:
            single.file(known.id, soon())
        finally:
            sys.setprofile(None)
        return calls

    assert min(count() for _ in range(20)) <= 16


class Held:
    """A table that nobody may read, and whether the general way was gone meanwhile."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        parsed = MetaURL.parse(url)
        self.link = Link(parsed, parsed.hosts[0], soon(), 0)
        self.link.raw.run("BEGIN; LOCK TABLE file IN ACCESS EXCLUSIVE MODE")
        self.waits = threading.Event()
        run = Link.run

        def noted(link: Link, *args: Any, **kwargs: Any) -> Any:
            self.waits.set()
            return run(link, *args, **kwargs)

        monkeypatch.setattr(Link, "run", noted)

    def let_go(self) -> None:
        self.link.raw.run("ROLLBACK")


@pytest.fixture
def held(metadb_url: str, known: File, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(metadb_url, monkeypatch)
    yield held
    held.link.close()


def test_an_answer_that_takes_long_is_waited_for_where_it_was_asked(
    single: MetaDB, known: File, held: Held
) -> None:
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(single.file, known.id, soon())
        assert held.waits.wait(60)
        assert not reading.done()
        held.let_go()
        assert reading.result(60) == known
    assert single.connections()["made"] == 1


def test_who_is_given_up_meanwhile_waits_no_longer(single: MetaDB, known: File, held: Held) -> None:
    scope = Scope()
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(single.file, known.id, Deadline(3600, scope=scope))
        assert held.waits.wait(60)
        scope.cancel("the client hung up")
        with pytest.raises(Cancelled, match="the client hung up"):
            reading.result(60)
    held.let_go()
    assert single.file(known.id, soon()) == known
    assert single.connections()["broken"] == 1


def test_it_ends_with_its_deadline(single: MetaDB, known: File, held: Held) -> None:
    with pytest.raises((TooSlow, Unavailable)):
        single.file(known.id, Deadline(0.4))
    held.let_go()
    assert single.file(known.id, soon()) == known


def test_another_answer_is_read(single: MetaDB, known: File, metadb_url: str) -> None:
    single.file(known.id, soon())
    run_sql(metadb_url, "UPDATE file SET name = 'another'")
    assert single.file(known.id, soon()) == dataclasses.replace(known, name="another")
    assert single.connections()["made"] == 1


@pytest.mark.parametrize("end", ["pg_terminate_backend(pid)", "pg_cancel_backend(pid)"])
def test_a_connection_that_has_ended_is_replaced(
    single: MetaDB, known: File, metadb_url: str, end: str
) -> None:
    run_sql(metadb_url, f"SELECT {end} {OTHERS}")
    assert single.file(known.id, soon()) == known
    assert single.file(known.id, soon()) == known
