"""MetaDB lost, frozen, killed and back: outcomes are asked for, not guessed, and nothing needs a restart."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import (
    Cancelled,
    ConfigError,
    DistfsError,
    NotFound,
    OutcomeUnknown,
    Refused,
    TooSlow,
    Unavailable,
)
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres, processes_in
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from tests.contract.litter import eventually
from tests.integration.meta_examples import new_file, report, soon
from tests.integration.meta_proxy import Cut, Proxy, proxied_url
from tests.postgres import run_sql

T = TypeVar("T")


@pytest.fixture
def through(proxy: Proxy, metadb_url: str) -> Iterator[MetaDB]:
    """A MetaDB that reaches this test's database through ``proxy``."""
    meta = MetaDB(MetaDBConfig(url=proxied_url(proxy, metadb_url)))
    yield meta
    meta.close()


@pytest.fixture
def hasty(proxy: Proxy, metadb_url: str) -> Iterator[MetaDB]:
    """The same, but it gives up soon."""
    meta = MetaDB(
        MetaDBConfig(
            url=proxied_url(proxy, metadb_url), statement_timeout=Seconds(0.5), patience=Seconds(0.5)
        )
    )
    yield meta
    meta.close()


@pytest.fixture
def impatient(own_postgres: EmbeddedPostgres) -> Iterator[MetaDB]:
    """A MetaDB over a server of its own, that gives up soon."""
    meta = MetaDB(
        MetaDBConfig(
            url=own_postgres.url,
            connect_timeout=Seconds(0.2),
            statement_timeout=Seconds(0.2),
            patience=Seconds(0.2),
        )
    )
    yield meta
    meta.close()


@contextlib.contextmanager
def frozen(server: EmbeddedPostgres) -> Iterator[None]:
    """Every process of a server stopped as by a hung disk or machine."""
    pids = list(processes_in(server.data))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("where", Cut)
def test_a_commit_whose_connection_is_cut_is_settled_by_asking(
    meta: MetaDB, through: MetaDB, proxy: Proxy, metadb_url: str, where: Cut
) -> None:
    files = [new_file((1, 2)), new_file()]
    proxy.cut(str(files[1].id), where)
    committed = through.commit_files(files, soon())
    assert proxy.has_cut
    assert proxy.connections == 2
    assert committed == [meta.file(file.id, soon()) for file in files]
    assert run_sql(metadb_url, "SELECT count(*) FROM slice") == [[3]]


@pytest.mark.parametrize("where", Cut)
def test_a_commit_that_cannot_be_settled_says_that_it_is_unknown(
    meta: MetaDB, hasty: MetaDB, proxy: Proxy, where: Cut
) -> None:
    file = new_file()
    _at_last(hasty.nodes)
    proxy.cut(str(file.id), where, refuse_afterwards=True)
    with pytest.raises(OutcomeUnknown) as caught:
        hasty.commit_files([file], soon())
    assert caught.value.status == 503
    # Both had to be told the same, and only one of them happened.
    assert [f.id for f in meta.list_files(None, 10, soon())] == ([file.id] if where is Cut.AFTER else [])
    proxy.refuses = False
    committed = _at_last(lambda deadline: hasty.commit_files([file], deadline))
    assert committed == [meta.file(file.id, soon())]


#: Fails where a file is inserted that is there already: the second try, after the first was lost and did it.
_FAIL_AGAIN = """
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM file WHERE id = NEW.id) THEN RAISE EXCEPTION 'no more' USING ERRCODE = '{code}'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER fail BEFORE INSERT ON file FOR EACH ROW EXECUTE FUNCTION fail();
"""


@pytest.mark.parametrize(
    ("code", "alone"),
    [("XX001", DistfsError), ("DF001", Refused), ("42501", ConfigError), ("57014", TooSlow)],
)
def test_a_commit_whose_second_try_fails_for_good_is_still_unknown(
    meta: MetaDB, through: MetaDB, proxy: Proxy, metadb_url: str, code: str, alone: type[DistfsError]
) -> None:
    """Whatever the second try says, the first may have happened: the fragments must stay."""
    file = new_file()
    run_sql(metadb_url, _FAIL_AGAIN.format(code=code))
    proxy.cut(str(file.id), Cut.AFTER)
    with pytest.raises(OutcomeUnknown):
        through.commit_files([file], soon())
    assert meta.file(file.id, soon()).slices == file.slices
    with pytest.raises(alone) as caught:  # without a lost try the error is certain
        through.commit_files([file], soon())
    assert not isinstance(caught.value, OutcomeUnknown)


def test_a_commit_that_cannot_be_confirmed_tells_a_client_no_address(
    meta: MetaDB, hasty: MetaDB, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second try could tell, and then MetaDB is away."""
    tries: list[str] = []
    file, run = new_file(), Link.run

    def leaves(link: Link, query: str, *args: Any) -> Any:
        tries.append(query)
        if len(tries) == 2:
            proxy.refuses = True
            link.raw._usock.interrupt()
        return run(link, query, *args)

    _at_last(hasty.nodes)
    monkeypatch.setattr(Link, "run", leaves)
    proxy.cut(str(file.id), Cut.AFTER)
    with pytest.raises(OutcomeUnknown, match=f"127.0.0.1:{proxy.port}") as caught:
        hasty.commit_files([file], soon())
    assert proxy.refused > 0
    assert caught.value.for_client == (
        "MetaDB cannot be reached at this moment: try again soon; whether it was done is not known"
    )
    monkeypatch.setattr(Link, "run", run)
    assert meta.file(file.id, soon()).slices == file.slices


def test_why_a_server_ended_a_connection_is_said(own_postgres: EmbeddedPostgres) -> None:
    url = MetaURL.parse(own_postgres.url)
    locker, link = (Link(url, url.hosts[0], soon(), statement_timeout=60) for _ in range(2))
    link.run("cluster_id", soon(), {})
    [[pid]] = link.raw.run("SELECT pg_backend_pid()")
    locker.raw.run("BEGIN; LOCK TABLE cluster IN ACCESS EXCLUSIVE MODE")
    with ThreadPoolExecutor(1) as aside:
        asked = aside.submit(link.run, "cluster_id", soon(), {})
        _wait_for_locks(own_postgres.url, 1)
        run_sql(own_postgres.url, f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(OutcomeUnknown, match="terminating connection due to administrator") as caught:
            asked.result(60)
    assert link.broken
    assert caught.value.for_client.startswith("MetaDB cannot be reached")
    for each in (link, locker):
        each.close()


@pytest.mark.parametrize("where", Cut)
def test_a_delete_whose_connection_is_cut_happens_once(
    meta: MetaDB, through: MetaDB, proxy: Proxy, where: Cut
) -> None:
    file = new_file()
    through.commit_files([file], soon())
    for change in (through.delete_file, through.undelete_file):
        proxy.cut(str(file.id), where)
        change(file.id, soon())
        assert proxy.has_cut
    assert meta.file(file.id, soon()).slices == file.slices


@pytest.mark.parametrize("where", Cut)
def test_a_read_whose_kept_connection_is_cut_is_asked_again(
    through: MetaDB, proxy: Proxy, where: Cut
) -> None:
    [file] = through.commit_files([new_file()], soon())
    proxy.cut(str(file.id), where)
    assert through.file(file.id, soon()) == file
    assert proxy.has_cut


def test_a_heartbeat_whose_connection_is_cut_registers_one_node(
    meta: MetaDB, through: MetaDB, proxy: Proxy
) -> None:
    said = report()
    proxy.cut(str(said.uuid), Cut.AFTER)
    assert through.heartbeat(said, soon()) == 1
    assert proxy.has_cut
    assert [node.uuid for node in meta.nodes(soon())] == [said.uuid]


def test_a_metadb_that_was_never_reached_is_unavailable_and_nothing_is_unknown(
    hasty: MetaDB, proxy: Proxy
) -> None:
    proxy.refuses = True
    calls: list[Callable[[], Any]] = [
        lambda: hasty.commit_files([new_file()], soon()),
        lambda: hasty.file(new_file().id, soon()),
        lambda: hasty.heartbeat(report(), soon()),
        lambda: hasty.ping(soon()),
    ]
    for call in calls:
        with pytest.raises(Unavailable, match=f"127.0.0.1:{proxy.port}") as caught:
            call()
        assert caught.value.status == 503
        assert not isinstance(caught.value, OutcomeUnknown)
    proxy.refuses = False
    _at_last(hasty.ping)


def test_a_commit_that_waits_too_long_for_a_lock_is_undone(
    impatient: MetaDB, own_postgres: EmbeddedPostgres
) -> None:
    file = new_file()
    _at_last(impatient.nodes)
    url = MetaURL.parse(own_postgres.url)
    locker = Link(url, url.hosts[0], soon(), statement_timeout=60)
    locker.raw.run("BEGIN; LOCK TABLE file IN EXCLUSIVE MODE")
    with pytest.raises(TooSlow, match="statement timeout"):
        impatient.commit_files([file], soon())
    locker.raw.run("ROLLBACK")
    locker.close()
    assert _at_last(lambda deadline: impatient.list_files(None, 10, deadline)) == []


def _wait_for_locks(url: str, count: int) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    eventually(lambda: run_sql(url, waiting) == [[count]], f"{count} wait for a lock")


def test_a_request_with_little_time_left_is_undone_in_time_and_costs_no_connection(
    own_postgres: EmbeddedPostgres,
) -> None:
    """The server gives its statement up before the request ends, and is told of the usual limit afterwards."""
    meta = MetaDB(MetaDBConfig(url=own_postgres.url, pool_size=1, statement_timeout=Seconds(60)))
    url = MetaURL.parse(own_postgres.url)
    meta.nodes(soon())
    [[backend]] = _backends(own_postgres.url)
    locker = Link(url, url.hosts[0], soon(), statement_timeout=60)
    locker.raw.run("BEGIN; LOCK TABLE file IN EXCLUSIVE MODE")
    file = new_file()
    with pytest.raises(TooSlow, match="statement timeout"):
        meta.commit_files([file], Deadline(3))
    locker.raw.run("ROLLBACK")
    locker.close()
    with pytest.raises(NotFound):
        meta.file(file.id, Deadline(120))
    assert _backends(own_postgres.url) == [[backend]], "the connection is as good as before"
    with meta._pool.link(soon()) as link:
        assert link.raw.run("SHOW statement_timeout") == [["1min"]]
    meta.close()


def _backends(url: str) -> list[list[object]]:
    return run_sql(
        url, "SELECT pid FROM pg_stat_activity WHERE application_name = 'distfs' AND pid <> pg_backend_pid()"
    )


def test_a_frozen_metadb_is_a_503_and_comes_back_by_itself(
    impatient: MetaDB, own_postgres: EmbeddedPostgres
) -> None:
    new = new_file()
    [file] = _at_last(lambda deadline: impatient.commit_files([new], deadline))
    with frozen(own_postgres):
        for call in (impatient.nodes, impatient.ping):
            with pytest.raises(Unavailable) as caught:
                call(soon())
            assert caught.value.status == 503
        with pytest.raises(Unavailable) as caught:
            impatient.commit_files([new_file()], soon())
        assert caught.value.status == 503
    assert _at_last(lambda deadline: impatient.file(file.id, deadline)) == file


def _at_last(call: Callable[[Deadline], T]) -> T:
    """What an impatient MetaDB answers, perhaps not at once: this machine may be slower than its limits."""
    answers: list[T] = []

    def answered() -> bool:
        with contextlib.suppress(Unavailable, TooSlow):
            answers.append(call(soon()))
        return bool(answers)

    eventually(answered, "MetaDB answers")
    return answers[0]


def test_the_first_request_after_a_restart_does_not_fail(own_postgres: EmbeddedPostgres) -> None:
    meta = MetaDB(MetaDBConfig(url=own_postgres.url))
    file = new_file()
    _busy_at_once(meta, 5)
    own_postgres.stop()
    with pytest.raises(Unavailable):
        meta.ping(soon())
    own_postgres.start()
    _busy_at_once(meta, 5)
    own_postgres.stop()
    own_postgres.start()
    meta.commit_files([file], soon())
    assert meta.file(file.id, soon()).slices == file.slices
    meta.close()


def test_what_was_committed_survives_kill_9_of_every_process(own_postgres: EmbeddedPostgres) -> None:
    meta = MetaDB(MetaDBConfig(url=own_postgres.url))
    files = meta.commit_files([new_file(name=f"{n}") for n in range(50)], soon())
    for pid in list(processes_in(own_postgres.data)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _wait_for_end(own_postgres)
    assert own_postgres.ensure_running()
    assert [meta.file(file.id, soon()) for file in files] == files
    meta.close()


def test_commits_go_on_while_metadb_is_killed_and_restarted(own_postgres: EmbeddedPostgres) -> None:
    """Whatever was acknowledged is there, whole; what was refused for good is not; unknown may be either."""
    meta = MetaDB(MetaDBConfig(url=own_postgres.url))
    acknowledged, absent, done = [], [], threading.Event()

    def upload() -> None:
        while not done.is_set():
            file = new_file((1, 2, 3))
            try:
                acknowledged.extend(meta.commit_files([file], soon()))
            except OutcomeUnknown:
                continue
            except Unavailable:
                absent.append(file)

    threads = [threading.Thread(target=upload) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        before = len(acknowledged)
        while len(acknowledged) < before + 20 and all(thread.is_alive() for thread in threads):
            done.wait(0.01)
        assert own_postgres.pid is not None
        os.kill(own_postgres.pid, signal.SIGKILL)
        _wait_for_end(own_postgres)
        assert own_postgres.ensure_running()
    done.set()
    for thread in threads:
        thread.join()
    assert len(acknowledged) >= 40
    assert [meta.file(file.id, soon()) for file in acknowledged] == acknowledged
    for file in absent:
        with pytest.raises(NotFound):
            meta.file(file.id, soon())
    meta.close()


def _wait_for_end(server: EmbeddedPostgres) -> None:
    eventually(lambda: not server.running(), "it has ended")


def _busy_at_once(meta: MetaDB, count: int) -> None:
    """Have ``count`` threads use MetaDB, so that it keeps as many connections."""
    meet = threading.Barrier(count)
    failed: list[Exception] = []

    def use() -> None:
        meet.wait()
        try:
            meta.nodes(soon())
        except Unavailable as e:
            failed.append(e)

    threads = [threading.Thread(target=use) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# --- cancelled ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", Cut)
def test_a_commit_that_was_sent_is_settled_though_its_request_is_cancelled(
    meta: MetaDB, through: MetaDB, proxy: Proxy, where: Cut
) -> None:
    file = new_file((1, 2))
    with soon().scope() as scope:
        proxy.cut(str(file.id), where, then=lambda: scope.cancel("the client hung up"))
        committed = through.commit_files([file], scope)
        assert scope.cancelled
    assert committed == [meta.file(file.id, soon())]


def test_a_cancelled_commit_that_was_not_sent_did_not_happen(meta: MetaDB, through: MetaDB) -> None:
    file = new_file()
    with soon().scope() as scope:
        scope.cancel("the client hung up")
        with pytest.raises(Cancelled, match="hung up"):
            through.commit_files([file], scope)
    with pytest.raises(NotFound):
        meta.file(file.id, soon())


def test_who_waits_for_a_connection_is_woken_and_the_next_gets_it(metadb_url: str) -> None:
    meta = MetaDB(MetaDBConfig(url=metadb_url, pool_size=1))
    with contextlib.closing(meta), ThreadPoolExecutor(2) as threads, Deadline(60).scope() as scope:
        with meta._pool.link(soon()):
            cancelled, next_one = threads.submit(meta.ping, scope), threads.submit(meta.ping, soon())
            eventually(lambda: meta._pool._links.snapshot().waiting == 2, "both wait")
            scope.cancel("the client hung up")
            with pytest.raises(Cancelled):
                cancelled.result(10)
            assert not next_one.done()
        next_one.result(10)
