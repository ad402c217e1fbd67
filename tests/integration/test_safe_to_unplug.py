"""A node that drains may be unplugged when nothing can name it any more, however long what began before takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest

from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import NodesLeft
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.model import Leaving
from tests.contract.litter import eventually
from tests.integration.meta_examples import placed, register, soon
from tests.postgres import run_sql

DRAINED = 3

Begun = Callable[[Callable[[Deadline], Any]], "Future[Any]"]


@pytest.fixture
def patient(metadb_url: str) -> Iterator[MetaDB]:
    """Whoever waits for MetaDB far longer than `distfs drain` would."""
    meta = MetaDB(MetaDBConfig(url=metadb_url, statement_timeout=Seconds(600)))
    register(meta, DRAINED)
    yield meta
    meta.close()


@contextmanager
def held(url: str, sql: str, **params: Any) -> Iterator[Begun]:
    """What waits for locks that ``sql`` takes is begun by what is given here; it ends after this."""
    parsed = MetaURL.parse(url)
    with (
        ThreadPoolExecutor(1) as threads,
        closing(Link(parsed, parsed.hosts[0], soon(), statement_timeout=0)) as link,
    ):
        link.raw.run("BEGIN")
        link.raw.run(sql, **params)

        def begin(call: Callable[[Deadline], Any]) -> Future[Any]:
            future = threads.submit(call, Deadline(600))
            waiting = (
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            eventually(lambda: len(run_sql(url, waiting)) == 1, "it waits for the lock")
            return future

        yield begin
        link.raw.run("ROLLBACK")


def leaving(meta: MetaDB) -> Leaving:
    return UpkeepDB(meta).leaving(DRAINED, soon())


def start_draining(meta: MetaDB) -> None:
    UpkeepDB(meta).set_node_state(DRAINED, "draining", soon())


def test_a_node_is_safe_to_unplug_when_it_drains_and_keeps_nothing(patient: MetaDB) -> None:
    file = placed((1, DRAINED))
    patient.commit_files([file], soon())
    assert leaving(patient) == Leaving(1, safe=False)
    start_draining(patient)
    assert leaving(patient) == Leaving(1, safe=False)
    patient.delete_file(file.id, soon())
    assert leaving(patient) == Leaving(1, safe=False), "it can be undeleted"
    assert UpkeepDB(patient).move_fragment(file.slices[0].id, 1, DRAINED, 2, soon())
    assert leaving(patient) == Leaving(0, safe=True)
    UpkeepDB(patient).set_node_state(DRAINED, "active", soon())
    assert leaving(patient) == Leaving(0, safe=False), "it does not drain"


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("table", ["slice", "trash_slice"])
def test_a_move_that_began_before_the_drain_is_waited_for(
    patient: MetaDB, metadb_url: str, table: str, adopted: bool
) -> None:
    file = placed((1, 2))
    patient.commit_files([file], soon())
    if table == "trash_slice":
        patient.delete_file(file.id, soon())
    piece, db = file.slices[0].id, UpkeepDB(patient)
    with held(metadb_url, f"SELECT FROM {table} FOR UPDATE") as begin:
        move = begin(lambda limit: db.move_fragment(piece, 0, 1, DRAINED, limit, adopted=adopted))
        start_draining(patient)
        assert leaving(patient) == Leaving(0, safe=False)
    assert move.result()
    assert leaving(patient) == Leaving(1, safe=False)


def test_a_commit_that_began_before_the_drain_is_waited_for(patient: MetaDB, metadb_url: str) -> None:
    """It has the lock, and waits for another slice of the same id, of which nothing comes."""
    file = placed((1, DRAINED))
    sql = """WITH other AS (
            INSERT INTO file (id, name, content_type, size, sha256, k, m, block_size)
            VALUES (gen_random_uuid(), 'another', 'text/plain', 1, sha256('a'), 1, 1, 4096) RETURNING id
        )
        INSERT INTO slice (id, file_id, ordinal, size, digest, nodes)
        SELECT :id, id, 0, 1, 'd', '{1, 2}' FROM other"""
    with held(metadb_url, sql, id=file.slices[0].id) as begin:
        commit = begin(lambda limit: patient.commit_files([file], limit))
        start_draining(patient)
        assert leaving(patient) == Leaving(0, safe=False)
    assert commit.result()[0].id == file.id
    assert leaving(patient) == Leaving(1, safe=False)


def test_a_commit_that_waited_before_it_looked_at_the_nodes_is_refused(
    patient: MetaDB, metadb_url: str
) -> None:
    with held(metadb_url, "LOCK TABLE file IN SHARE MODE") as begin:
        commit = begin(lambda limit: patient.commit_files([placed((1, DRAINED))], limit))
        start_draining(patient)
        assert leaving(patient) == Leaving(0, safe=True)
    with pytest.raises(NodesLeft):
        commit.result()
    assert leaving(patient) == Leaving(0, safe=True)


@pytest.mark.parametrize("back", [False, True], ids=["delete", "undelete"])
def test_what_is_deleted_or_undeleted_meanwhile_takes_the_places_along_that_it_has_then(
    patient: MetaDB, metadb_url: str, back: bool
) -> None:
    """It began when the node still kept a fragment, and ends after the node was said to be empty."""
    file = placed((1, DRAINED))
    patient.commit_files([file], soon())
    if back:
        patient.delete_file(file.id, soon())
    call = patient.undelete_file if back else patient.delete_file
    with held(metadb_url, f"SELECT FROM {'trash' if back else 'file'} FOR UPDATE") as begin:
        done = begin(lambda limit: call(file.id, limit))
        start_draining(patient)
        assert UpkeepDB(patient).move_fragment(file.slices[0].id, 1, DRAINED, 2, soon())
        assert leaving(patient) == Leaving(0, safe=True)
    assert done.result() is None
    [[places]] = run_sql(metadb_url, f"SELECT nodes FROM {'slice' if back else 'trash_slice'}")  # noqa: S608
    assert places == [1, 2]
    assert leaving(patient) == Leaving(0, safe=True)


WAITS = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
WAIT_NO_MORE = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def a_commit_waits(url: str) -> bool:
    """A process of PostgreSQL's own hears of the setting now or later, and only then commits wait."""
    with ThreadPoolExecutor(1) as threads:
        commit = threads.submit(run_sql, url, "COMMENT ON DATABASE postgres IS 'changed'")
        eventually(lambda: commit.done() or run_sql(url, WAITS), "it is done, or waits")
        waits = not commit.done()
        run_sql(url, WAIT_NO_MORE)
        commit.result()
    return waits


@pytest.mark.parametrize("what", ["commit", "move"])
def test_a_change_that_waits_for_a_standby_is_waited_for(own_postgres: EmbeddedPostgres, what: str) -> None:
    """It may have been done for long and seen by nobody, and end at any time."""
    url = own_postgres.url
    with closing(MetaDB(MetaDBConfig(url=url))) as before:
        register(before, DRAINED)
        there = placed((1, 2))
        before.commit_files([there], soon())
    run_sql(url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    run_sql(url, "SELECT pg_reload_conf()")
    eventually(lambda: a_commit_waits(url), "it wants a standby")
    with (
        ThreadPoolExecutor(1) as threads,
        closing(MetaDB(MetaDBConfig(url=url, statement_timeout=Seconds(600)))) as meta,
        closing(MetaDB(MetaDBConfig(url=url))) as quick,
    ):
        meta.ping(soon())  # it is connected, and will wait
        run_sql(url, "SET synchronous_commit = local; ALTER DATABASE postgres SET synchronous_commit = local")
        calls: dict[str, Callable[[], Any]] = {
            "commit": lambda: meta.commit_files([placed((1, DRAINED))], soon()),
            "move": lambda: UpkeepDB(meta).move_fragment(there.slices[0].id, 0, 1, DRAINED, soon()),
        }
        change = threads.submit(calls[what])
        eventually(lambda: len(run_sql(url, WAITS)) == 1, "it waits for the standby")
        start_draining(quick)
        assert leaving(quick) == Leaving(0, safe=False)
        run_sql(url, WAIT_NO_MORE)
        assert change.result()
        assert leaving(quick) == Leaving(1, safe=False)
