"""Who leads a worker, as MetaDB's locks say it."""

from __future__ import annotations

import threading

import pytest

from distfs.config.settings import MetaDBConfig
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.leadership import Leaders
from tests.contract.litter import eventually
from tests.integration.meta_examples import soon
from tests.postgres import run_sql


@pytest.fixture
def upkeep(meta: MetaDB) -> UpkeepDB:
    return UpkeepDB(meta)


def test_a_worker_has_one_leader_and_another_when_it_is_released(upkeep: UpkeepDB, metadb_url: str) -> None:
    other = MetaDB(MetaDBConfig(url=metadb_url))
    first = upkeep.leadership("repair", soon())
    assert first is not None
    assert first.held(soon())
    assert UpkeepDB(other).leadership("repair", soon()) is None
    scrub = UpkeepDB(other).leadership("scrub", soon())
    assert scrub is not None
    first.release()
    first.release()
    assert not first.held(soon())
    second = UpkeepDB(other).leadership("repair", soon())
    assert second is not None
    assert second.held(soon())
    for leader in (second, scrub):
        leader.release()
    other.close()


def test_a_leader_whose_connection_is_lost_leads_no_more(upkeep: UpkeepDB, metadb_url: str) -> None:
    leader = upkeep.leadership("repair", soon())
    assert leader is not None
    run_sql(
        metadb_url, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    )
    assert not leader.held(soon())
    second = upkeep.leadership("repair", soon())
    assert second is not None
    assert not leader.held(soon())
    second.release()


def leading(url: str) -> dict[int, int]:
    """How many locks each connection holds by which somebody leads."""
    rows = run_sql(
        url,
        "SELECT pid, count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) GROUP BY pid",
    )
    return {int(pid): int(count) for pid, count in rows}


def test_all_that_one_process_leads_takes_one_connection_which_ends_with_the_last(
    upkeep: UpkeepDB, metadb_url: str
) -> None:
    names = ("repair", "scrub", "trash")
    leaders = [leader for name in names if (leader := upkeep.leadership(name, soon()))]
    [(connection, locks)] = leading(metadb_url).items()
    assert (len(leaders), locks) == (3, 3)
    leaders[0].release()
    assert leading(metadb_url) == {connection: 2}
    assert [leader.held(soon()) for leader in leaders] == [False, True, True]
    again = upkeep.leadership("repair", soon())
    assert again is not None
    assert leading(metadb_url) == {connection: 3}
    run_sql(metadb_url, f"SELECT pg_terminate_backend({connection}, 5000)")
    assert not again.held(soon())
    assert [leader.held(soon()) for leader in leaders] == [False, False, False]
    assert leading(metadb_url) == {}
    once_more = upkeep.leadership("trash", soon())
    assert once_more is not None
    assert list(leading(metadb_url).values()) == [1]
    once_more.release()
    eventually(lambda: not leading(metadb_url), "nobody leads")
    assert upkeep._leaders._link is None


def test_a_worker_that_hangs_leads_no_more_though_others_of_its_process_speak(metadb_url: str) -> None:
    meta = MetaDB(MetaDBConfig(url=metadb_url))
    now = 0.0
    leaders = Leaders(meta.connect, clock=lambda: now)
    hangs, speaks = leaders.lead(1, soon()), leaders.lead(2, soon())
    assert hangs is not None
    assert speaks is not None
    for now in (0.0, 119.0, 121.0):
        assert speaks.held(soon())
        assert leading(metadb_url).popitem()[1] == (2 if now < 120 else 1)
    assert not hangs.held(soon())
    speaks.release()
    meta.close()


def test_many_threads_lead_at_once(upkeep: UpkeepDB, metadb_url: str) -> None:
    counts: list[int] = []

    def lead(number: int) -> None:
        for _ in range(10):
            leader = upkeep.leadership(f"worker {number}", soon())
            assert leader is not None
            counts.append(sum(leader.held(soon()) for _ in range(3)))
            leader.release()

    threads = [threading.Thread(target=lead, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [3] * 60
    eventually(lambda: not leading(metadb_url), "nobody leads")


def test_a_leader_that_falls_silent_is_ended_by_the_server(upkeep: UpkeepDB, metadb_url: str) -> None:
    leader = upkeep.leadership("repair", soon())
    assert leader is not None
    [[limit]] = upkeep._leaders._link.raw.run("SHOW idle_session_timeout")  # type: ignore[union-attr]
    assert limit == "2min"
    leader.release()


def test_leading_survives_a_restart_of_metadb_by_being_asked_for_again(
    own_postgres: EmbeddedPostgres,
) -> None:
    meta = MetaDB(MetaDBConfig(url=own_postgres.url))
    upkeep = UpkeepDB(meta)
    leader = upkeep.leadership("repair", soon())
    assert leader is not None
    own_postgres.stop()
    assert not leader.held(soon())
    own_postgres.start()
    again = upkeep.leadership("repair", soon())
    assert again is not None
    assert again.held(soon())
    again.release()
    meta.close()
