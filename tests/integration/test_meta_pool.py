"""Connections to MetaDB: shared, bounded, encrypted where asked, to the server that takes writes."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError, Refused, TooSlow, Unavailable
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.metadb.link import Link
from distfs.metadb.pool import Pool
from distfs.metadb.url import MetaURL
from distfs.process import connection_pool
from distfs.telemetry import metrics
from tests.contract.litter import eventually
from tests.faults.patch import unplanned
from tests.integration.meta_examples import new_file, report, soon
from tests.integration.meta_proxy import MakeProxy
from tests.postgres import database_url, run_sql


@pytest.fixture
def pool(metadb_url: str) -> Iterator[Pool]:
    pool = Pool(lambda: MetaURL.parse(metadb_url), size=2, connect_timeout=1, statement_timeout=5)
    yield pool
    pool.close()


def connections(url: str) -> int:
    """How many connections distfs has to a database, not counting the one that asks."""
    [[count]] = run_sql(
        url,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'",  # and not autovacuum's
    )
    return int(count)


def test_many_threads_share_few_connections(metadb_url: str) -> None:
    meta = MetaDB(MetaDBConfig(url=metadb_url, pool_size=2))
    committed: list[object] = []

    def upload() -> None:
        for _ in range(10):
            committed.extend(meta.commit_files([new_file()], soon()))

    threads = [threading.Thread(target=upload) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(committed) == 80
    assert 1 <= connections(metadb_url) <= 2
    meta.close()


def test_a_connection_is_used_again(pool: Pool) -> None:
    with pool.link(soon()) as first:
        pass
    with pool.link(soon()) as again:
        assert again is first


def test_when_every_connection_is_busy_the_wait_ends_with_the_deadline(pool: Pool) -> None:
    with pool.link(soon()), pool.link(soon()):
        with pytest.raises(Busy, match="all 2 connections .* metadb.pool_size") as busy:
            with pool.link(Deadline(0.05)):
                pass
    assert busy.value.for_client == "every connection that the request needs is in use: try again soon"


def test_connections_that_nobody_needs_any_more_are_closed(
    metadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distfs.metadb.pool.IDLE_S", 0.2)
    pool = Pool(lambda: MetaURL.parse(metadb_url), size=4, connect_timeout=5, statement_timeout=5)
    with pool.link(soon()), pool.link(soon()), pool.link(soon()):
        assert connections(metadb_url) == 3

    def one_is_left() -> bool:
        with pool.link(soon()) as link:
            link.run("cluster_id", soon(), {})
        return connections(metadb_url) == 1

    eventually(one_is_left, "only the one in use is left")
    pool.close()


def test_a_connection_given_back_wakes_who_waits(pool: Pool) -> None:
    first, second = pool.link(soon()), pool.link(soon())
    first.__enter__()
    lent = second.__enter__()
    got: list[Link] = []

    def wait() -> None:
        with pool.link(soon()) as link:
            got.append(link)

    waiting = threading.Thread(target=wait)
    waiting.start()
    second.__exit__(None, None, None)
    waiting.join()
    assert got == [lent]
    first.__exit__(None, None, None)


def test_a_connection_the_server_ended_is_replaced(pool: Pool, metadb_url: str) -> None:
    with pool.link(soon()) as link:
        [[before]] = link.run("cluster_id", soon(), {})
    run_sql(
        metadb_url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    with pool.link(soon()) as link:
        assert not link.reused
        assert link.run("cluster_id", soon(), {}) == [[before]]


def test_a_read_outlives_that_the_server_has_ended_what_was_just_used(
    metadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not look first whether its connection is still there, and asks again on another."""
    monkeypatch.setattr(connection_pool, "JUST_S", 3600.0)
    with contextlib.closing(MetaDB(MetaDBConfig(url=metadb_url))) as meta:
        with contextlib.ExitStack() as lent:
            for _ in range(3):
                lent.enter_context(meta._pool.link(soon()))
        run_sql(
            metadb_url,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        before = metrics.RETRIES.value("statement")
        assert meta.read("cluster_id", soon()) == run_sql(metadb_url, "SELECT id FROM cluster")
        assert meta._pool._links.snapshot().broken == 1
        assert metrics.RETRIES.value("statement") == before + 1


@pytest.mark.parametrize("ended", [False, True])
def test_a_commit_leaves_on_what_was_just_used_without_a_look_and_again_where_that_has_ended(
    metadb_url: str, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    monkeypatch.setattr(connection_pool, "JUST_S", 3600.0)
    looked: list[Link] = []
    idle = vars(Link)["idle"].fget

    def noted(link: Link) -> bool:
        if threading.current_thread() is here:  # others' MetaDBs may look meanwhile
            looked.append(link)
        return bool(idle(link))

    here = threading.current_thread()
    monkeypatch.setattr(Link, "idle", property(unplanned(noted)))
    with contextlib.closing(MetaDB(MetaDBConfig(url=metadb_url, pool_size=1))) as meta:
        meta.commit_files([new_file()], soon())
        if ended:
            run_sql(
                metadb_url,
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
        file = new_file()
        [committed] = meta.commit_files([file], soon())
        assert ended or looked == []  # who tries again may look
        assert meta.file(file.id, soon()) == committed
        state = meta.connections()
        assert (state["made"], state["broken"]) == ((2, 1) if ended else (1, 0))


def test_a_refused_statement_costs_no_connection(metadb_url: str) -> None:
    meta = MetaDB(MetaDBConfig(url=metadb_url, pool_size=1))
    file = new_file()
    meta.commit_files([file], soon())
    for _ in range(5):
        with pytest.raises(Refused):
            meta.heartbeat(report(state="draining"), soon())
        with pytest.raises(DistfsError):  # another file with the same slices
            meta.commit_files([dataclasses.replace(file, id=uuid4())], soon())
    assert connections(metadb_url) == 1
    assert meta.file(file.id, soon()).size == file.size
    meta.close()


def test_a_passed_deadline_is_too_slow_and_costs_nothing(meta: MetaDB) -> None:
    with pytest.raises(TooSlow):
        meta.nodes(Deadline(0))
    assert meta.nodes(soon()) == []


def test_closing_ends_every_connection_and_refuses_more(metadb_url: str) -> None:
    meta = MetaDB(MetaDBConfig(url=metadb_url))
    meta.ping(soon())
    meta.close()
    with pytest.raises(Unavailable, match="stopping"):
        meta.ping(soon())


def test_a_wrong_password_is_said_without_it(own_postgres: EmbeddedPostgres) -> None:
    run_sql(own_postgres.url, "CREATE ROLE anna LOGIN SUPERUSER PASSWORD 'right'")
    rules = own_postgres.data / "pg_hba.conf"
    rules.write_text("local all anna scram-sha-256\n" + rules.read_text())
    own_postgres.stop()
    own_postgres.start()
    url = database_url(own_postgres, "postgres", user="anna:right")
    meta = MetaDB(MetaDBConfig(url=url))
    meta.ping(soon())
    meta.close()
    for wrong in (url.replace("right", "wrong"), url.replace(":right", "")):
        meta = MetaDB(MetaDBConfig(url=wrong))
        with pytest.raises(Unavailable, match="password authentication failed") as caught:
            meta.ping(soon())
        assert "wrong" not in str(caught.value)
        meta.close()


def test_of_several_hosts_the_one_that_takes_writes_is_used(
    metadb_url: str, own_postgres: EmbeddedPostgres, make_proxy: MakeProxy
) -> None:
    """One host is dead, one only takes reads (as a standby does), one takes writes."""
    database = MetaURL.parse(metadb_url).database
    run_sql(own_postgres.url, f"CREATE DATABASE {database}")
    run_sql(own_postgres.url, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    dead, standby, primary = make_proxy(metadb_url), make_proxy(own_postgres.url), make_proxy(metadb_url)
    dead.refuses = True
    hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in (dead, standby, primary))
    meta = MetaDB(MetaDBConfig(url=f"postgresql://distfs@{hosts}/{database}"))
    meta.commit_files([new_file()], soon())
    assert run_sql(metadb_url, "SELECT count(*) FROM file") == [[1]]
    meta.close()
    alone = MetaDB(MetaDBConfig(url=f"postgresql://distfs@127.0.0.1:{standby.port}/{database}"))
    with pytest.raises(Unavailable, match="takes no writes"):
        alone.nodes(soon())
    alone.close()


def test_tls_carries_everything_there_is_to_say(tls_url: str, certificate: Path) -> None:
    for query in ("sslmode=require", f"sslmode=verify-full&sslrootcert={certificate}.crt"):
        meta = MetaDB(MetaDBConfig(url=f"{tls_url}?{query}"))
        file = new_file((1,) * 2000)
        meta.commit_files([file], soon())
        assert meta.file(file.id, soon()).slices == file.slices
        meta.close()


def test_a_certificate_nobody_vouches_for_is_refused_when_it_is_to_be_verified(tls_url: str) -> None:
    meta = MetaDB(MetaDBConfig(url=f"{tls_url}?sslmode=verify-full"))
    with pytest.raises(Unavailable, match="certificate verify failed"):
        meta.ping(soon())
    meta.close()


def test_a_server_without_tls_is_never_spoken_to_in_plaintext_instead(
    metadb_url: str, make_proxy: MakeProxy
) -> None:
    proxy = make_proxy(metadb_url)
    url = f"postgresql://distfs@127.0.0.1:{proxy.port}/postgres?sslmode=require"
    meta = MetaDB(MetaDBConfig(url=url, statement_timeout=Seconds(1)))
    with pytest.raises(Unavailable, match="speaks no TLS: .*sslmode=disable"):
        meta.ping(soon())
    meta.close()
