"""A MetaDB that is being restarted is waited for, however quick its answers must be else; one that is gone is not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

import distfs.metadb.transactions
from distfs.commands import operator as operators
from distfs.config.settings import Config, MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import Away, Cancelled, NotFound, Refused, Unavailable
from distfs.limits.db import ReservationDB
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.metadb.link import Link
from distfs.metadb.pool import Pool
from distfs.metadb.url import MetaURL
from distfs.upkeep.db import UpkeepDB
from tests.contract.litter import eventually
from tests.integration.meta_examples import new_file, report, soon
from tests.integration.meta_proxy import Cut, Proxy, proxied_url
from tests.postgres import run_sql


def meta_through(url: str, patience: float) -> MetaDB:
    """Gives a statement 0.2 s, and half a second more to say so."""
    config = MetaDBConfig(url=url, statement_timeout=Seconds(0.2), patience=Seconds(patience))
    return MetaDB(config)


@pytest.fixture
def patient(proxy: Proxy, metadb_url: str) -> Iterator[MetaDB]:
    with contextlib.closing(meta_through(proxied_url(proxy, metadb_url), 300)) as meta:
        yield meta


@pytest.fixture
def hasty(proxy: Proxy, metadb_url: str) -> Iterator[MetaDB]:
    with contextlib.closing(meta_through(proxied_url(proxy, metadb_url), 0.5)) as meta:
        yield meta


def away_for(meta: MetaDB, seconds: float) -> None:
    eventually(lambda: meta._pool.away_for() > seconds, "it has been away for long")


def listed(meta: MetaDB) -> object:
    return meta.nodes(soon())


def committed(meta: MetaDB) -> object:
    return meta.commit_files([new_file()], soon())


def deleted(meta: MetaDB) -> object:
    """A change of what is not there."""
    with pytest.raises(NotFound):
        meta.delete_file(new_file().id, soon())
    return None


@pytest.mark.parametrize("ask", [listed, deleted, committed])
def test_a_restart_that_takes_longer_than_a_statement_may_is_waited_for(
    patient: MetaDB, proxy: Proxy, ask: Callable[[MetaDB], object]
) -> None:
    proxy.refuses = True
    with ThreadPoolExecutor(1) as aside:
        asked = aside.submit(ask, patient)
        away_for(patient, 3 * patient._budget)
        assert not asked.done()
        proxy.refuses = False
        asked.result(60)


def test_a_commit_that_is_lost_by_a_long_restart_is_settled(
    meta: MetaDB, patient: MetaDB, proxy: Proxy
) -> None:
    file = new_file()
    proxy.cut(str(file.id), Cut.AFTER, refuse_afterwards=True)
    with ThreadPoolExecutor(1) as aside:
        asked = aside.submit(patient.commit_files, [file], soon())
        away_for(patient, 3 * patient._budget)
        proxy.refuses = False
        assert asked.result(60) == [meta.file(file.id, soon())]


@pytest.mark.parametrize("ask", [listed, committed])
def test_a_metadb_that_has_been_away_for_long_is_not_waited_for(
    hasty: MetaDB, proxy: Proxy, ask: Callable[[MetaDB], object]
) -> None:
    """Each request would hold a worker for as long."""
    proxy.refuses = True
    with pytest.raises(Unavailable):
        ask(hasty)
    assert proxy.refused > 1
    away_for(hasty, 0.5)
    tried = proxy.refused
    with pytest.raises(Unavailable):
        ask(hasty)
    assert proxy.refused == tried + 1


def test_nodes_that_could_not_heartbeat_while_metadb_was_away_are_not_down(
    meta: MetaDB, patient: MetaDB, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say that they live as soon as they can; until then nothing could be placed anywhere."""
    monkeypatch.setattr(distfs.metadb.transactions, "_HEARD_AGAIN_S", 3600.0)
    patient.down_after = 2.0
    meta.heartbeat(report(), soon())
    [file] = meta.commit_files([new_file()], soon())
    proxy.refuses = True
    with ThreadPoolExecutor(1) as aside:
        states = aside.submit(ReservationDB(patient, uuid4()).state, soon())
        away_for(patient, 4)
        proxy.refuses = False
        assert states.result(60).up == 1
    [node] = patient.nodes(soon())
    assert node.heartbeat_age > 2
    assert node.alive
    assert lost(patient, file.id) == (0, 0, [], [])
    with pytest.raises(Refused, match="is alive"):
        UpkeepDB(patient).forget_node(node.id, soon())
    monkeypatch.setattr(distfs.metadb.transactions, "_HEARD_AGAIN_S", 0.0)
    [node] = patient.nodes(soon())
    assert not node.alive
    assert lost(patient, file.id) == (1, 1, [node.id], [node.id])


def test_a_command_just_after_metadb_was_started_waits_for_nodes_to_be_heard_of(
    meta: MetaDB, metadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would say that all is lost. One that is really down is waited for no longer."""
    said = report()
    meta.heartbeat(said, soon())
    run_sql(metadb_url, "UPDATE node SET heartbeat_at = now() - interval '1 hour'")
    config = Config(metadb=MetaDBConfig(url=metadb_url))
    monkeypatch.setattr(operators, "_HEARD_AGAIN_S", 0.0)  # so the server was started long ago
    with operators.operator(config) as one:
        assert [node.alive for node in one.nodes()] == [False]
    monkeypatch.setattr(operators, "_HEARD_AGAIN_S", 1e9)  # or just now
    monkeypatch.setattr("time.sleep", lambda _: meta.heartbeat(said, soon()))
    with operators.operator(config) as one:
        assert [node.alive for node in one.nodes()] == [True]


def lost(meta: MetaDB, file: UUID) -> tuple[object, ...]:
    """What repair, an operator and a user are told that a node's silence costs."""
    upkeep = UpkeepDB(meta)
    missing = upkeep.health(file, soon()).missing
    due = upkeep.work_to_repair(2.0, 10, soon())
    return missing, len(due), upkeep.hurt_places(2.0, soon())[0], upkeep.give_up_silent_nodes(soon())


def test_one_that_does_not_answer_is_not_taken_for_one_that_is_restarted(
    proxy: Proxy, metadb_url: str
) -> None:
    """It accepts connections, and is silent: a request must not wait for patience."""
    with contextlib.closing(meta_through(proxied_url(proxy, metadb_url), 3600)) as meta, proxy.hanging():
        with pytest.raises(Unavailable):
            meta.nodes(soon())


def test_who_gave_a_request_up_says_nothing_of_metadb(patient: MetaDB, proxy: Proxy) -> None:
    with proxy.hanging(), ThreadPoolExecutor(1) as aside, Deadline(60).scope() as scope:
        asked = aside.submit(patient._pool.connect, scope, 60)
        eventually(lambda: proxy.held, "it is connecting")
        scope.cancel("the client hung up")
        with pytest.raises(Cancelled):
            asked.result(60)
    assert patient._pool.away_for() == 0


@pytest.fixture
def shared(proxy: Proxy, metadb_url: str) -> Iterator[Pool]:
    url = MetaURL.parse(proxied_url(proxy, metadb_url))
    with contextlib.closing(Pool(lambda: url, size=2, connect_timeout=30, statement_timeout=60)) as pool:
        yield pool


def test_a_metadb_that_answers_is_not_away_though_one_more_connect_failed(shared: Pool, proxy: Proxy) -> None:
    """It may have no place for another connection; idle ones are used first, so nobody may connect for hours."""
    with shared.link(soon()) as link:
        proxy.refuses = True
        with pytest.raises(Unavailable), shared.link(soon()):
            pass
        assert proxy.refused == 1
        away = shared.away_for()
        assert away > 0
        eventually(lambda: shared.away_for() > away, "time passes")
        link.run("cluster_id", soon(), {})
    assert shared.away_for() == 0
    proxy.refuses = False
    with shared.link(soon()), shared.link(soon()):
        assert proxy.connections == 3
    assert shared.was_away(3600) == 0, "nodes could heartbeat all the time"


def test_a_link_that_was_not_asked_says_nothing_of_metadb(shared: Pool, proxy: Proxy) -> None:
    with shared.link(soon()):
        proxy.refuses = True
        with pytest.raises(Unavailable), shared.link(soon()):
            pass
    assert proxy.refused == 1
    assert shared.away_for() > 0


def test_an_attempt_from_before_metadb_was_back_does_not_make_it_away_again(metadb_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as before:
        urls = [
            MetaURL.parse(f"postgresql://distfs@127.0.0.1:{before.getsockname()[1]}/distfs"),
            MetaURL.parse(metadb_url),
        ]
        pool = Pool(lambda: urls.pop(0), size=2, connect_timeout=60, statement_timeout=60)
        with contextlib.closing(pool), ThreadPoolExecutor(1) as aside:
            late = aside.submit(pool.connect, soon(), 60)
            stopping, _ = before.accept()
            pool.connect(soon(), 60).close()
            stopping.close()
            with pytest.raises(Away):
                late.result(60)
            assert pool.away_for() == 0


# --- what looks like a restart --------------------------------------------------------------------------------

# https://www.postgresql.org/docs/current/protocol-message-formats.html
_STARTING, _NO_SUCH_DATABASE = (
    b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0",
    b"SFATAL\0VFATAL\0C3D000\0Mdatabase does not exist\0\0",
)


@contextlib.contextmanager
def refusing(*fields: bytes) -> Iterator[int]:
    """-> the port of a server that refuses who connects, so often, or just ends the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for each in fields:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                if each:
                    connection.sendall(b"E" + (len(each) + 4).to_bytes(4, "big") + each)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    thread.join()
    listener.close()


@pytest.mark.parametrize(
    ("said", "may_restart"),
    [(_STARTING, True), (_NO_SUCH_DATABASE, False), (b"", True)],
    ids=["starting", "no database", "hung up"],
)
def test_what_a_server_says_tells_whether_it_may_be_restarting(said: bytes, may_restart: bool) -> None:
    with refusing(said) as port:
        url = MetaURL.parse(f"postgresql://distfs@127.0.0.1:{port}/distfs")
        with pytest.raises(Unavailable) as refused:
            Pool(lambda: url, size=1, connect_timeout=30, statement_timeout=5).connect(soon(), 5)
    assert isinstance(refused.value, Away) == may_restart
    with pytest.raises(Away):  # nobody listens there any more
        Link(url, url.hosts[0], soon(), 5)


def test_an_embedded_metadb_that_is_stopped_is_away_and_one_that_never_was_is_not(
    own_postgres: EmbeddedPostgres,
) -> None:
    def connect(folder: object) -> Any:
        return MetaDB(MetaDBConfig(url=f"embedded:{folder}"))._pool.connect(soon(), 5)

    own_postgres.stop()
    with pytest.raises(Away):
        connect(own_postgres.folder)
    with pytest.raises(Unavailable) as refused:
        connect(own_postgres.folder / "nowhere")
    assert not isinstance(refused.value, Away)


def test_after_a_crash_postgresql_does_not_sync_its_files_one_by_one(own_postgres: EmbeddedPostgres) -> None:
    """It takes seconds, in which nobody can use MetaDB."""
    meta = MetaDB(MetaDBConfig(url=own_postgres.url))
    assert own_postgres.pid is not None
    os.kill(own_postgres.pid, signal.SIGKILL)
    eventually(lambda: not own_postgres.running(), "it is gone")
    assert own_postgres.ensure_running()
    with contextlib.closing(meta), meta._pool.link(soon()) as link:
        assert link.raw.run("SHOW recovery_init_sync_method") == [["syncfs"]]
