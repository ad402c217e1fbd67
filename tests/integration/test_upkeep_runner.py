"""The runner: one service leads a worker, goes on after anything, and all workers together heal a cluster."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import distfs.upkeep.runner
from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import NodeUnavailable
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.peers.directory import NodeDirectory
from distfs.transfer.slice_read import not_noted
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.runner import Runner, Upkeep
from distfs.upkeep.step import Pace, Step
from tests.contract.litter import eventually
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import FAST, UpkeepCluster, bytes_of, flip
from tests.postgres import run_sql


@dataclass
class Work:
    """What the workers of all services did, seen from outside."""

    steps: dict[str, int] = field(default_factory=dict)
    overlaps: int = 0
    running: threading.Lock = field(default_factory=threading.Lock)
    made: int = 0


class Counting:
    """A worker that counts its steps, and notices when another one steps at the same time."""

    name = "counting"

    def __init__(self, work: Work, service: str, fails: list[Exception] | None = None) -> None:
        self._work, self._service, self._fails = work, service, fails or []
        work.made += 1

    def step(self, deadline: Deadline) -> Step:
        if not self._work.running.acquire(blocking=False):
            self._work.overlaps += 1
        try:
            for error in self._fails[:1]:
                del self._fails[:1]
                raise error
            self._work.steps[self._service] = self._work.steps.get(self._service, 0) + 1
            threading.Event().wait(0.002)
            return Step(Pace.BUSY, {"steps": self._work.steps[self._service]})
        finally:
            self._work.running.release()


@dataclass
class Service:
    """One service's runner of that worker."""

    name: str
    runner: Runner
    stopping: threading.Event

    def stop(self) -> None:
        self.stopping.set()
        self.runner.join(20)
        assert not self.runner.is_alive()


def run(db: UpkeepDB, work: Work, name: str, fails: list[Exception] | None = None) -> Service:
    stopping = threading.Event()
    runner = Runner("counting", lambda: Counting(work, name, fails), db, 0.02, 10.0, stopping, lambda _: None)
    runner.start()
    return Service(name, runner, stopping)


@pytest.fixture
def db(meta: MetaDB) -> UpkeepDB:
    return UpkeepDB(meta)


def test_of_two_services_one_works_and_the_other_takes_over(db: UpkeepDB) -> None:
    work = Work()
    services = {name: run(db, work, name) for name in ("a", "b")}
    try:
        eventually(lambda: sum(work.steps.values()) > 100, "somebody works")
        assert len(work.steps) == 1
        [first] = work.steps
        [second] = {"a", "b"} - {first}
        services.pop(first).stop()
        eventually(lambda: work.steps.get(second, 0) > 20, "the other takes over")
    finally:
        for service in services.values():
            service.stop()
    assert work.overlaps == 0


def test_a_leader_that_lost_its_connection_begins_anew(db: UpkeepDB, metadb_url: str) -> None:
    work = Work()
    service = run(db, work, "a")
    try:
        eventually(lambda: work.steps.get("a", 0) > 20, "it works")
        before = work.steps["a"]
        run_sql(
            metadb_url,
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        eventually(lambda: work.made == 2, "it leads again, with a fresh worker")
        eventually(lambda: work.steps["a"] > before + 20, "it works again")
    finally:
        service.stop()
    assert work.overlaps == 0


def test_an_error_is_shown_and_waited_out(db: UpkeepDB) -> None:
    work = Work()
    fails: list[Exception] = [NodeUnavailable("node 3 is away")] * 100_000
    service = run(db, work, "a", fails)
    try:
        eventually(
            lambda: any(w.detail.get("stuck") == "node 3 is away" for w in db.workers(soon())),
            "everybody can see it",
        )
        assert len(fails) > 3
        fails.clear()
        eventually(lambda: work.steps.get("a", 0) > 5, "it works again")
        eventually(lambda: db.workers(soon())[0].state == "busy", "that is shown, too")
    finally:
        service.stop()
    assert work.made == 1


def test_a_bug_does_not_end_upkeep(db: UpkeepDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distfs.upkeep.runner._AFTER_BUG_S", 0.05)
    work = Work()
    service = run(db, work, "a", [ZeroDivisionError("a bug of ours")])
    try:
        eventually(lambda: work.steps.get("a", 0) > 5, "it works again")
    finally:
        service.stop()
    assert work.made == 2


def test_an_error_that_cannot_be_shown_does_not_end_upkeep(
    db: UpkeepDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distfs.upkeep.runner._AFTER_BUG_S", 0.05)
    save, bugs = db.save_worker, [ZeroDivisionError("a bug of ours")]

    def failing(name: str, state: str, *rest: object) -> None:
        if state == "failing" and bugs:
            raise bugs.pop()
        save(name, state, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(db, "save_worker", failing)
    work = Work()
    service = run(db, work, "a", [NodeUnavailable("node 3 is away")])
    try:
        eventually(lambda: work.steps.get("a", 0) > 5, "it works again")
    finally:
        service.stop()
    assert not bugs


def test_results_are_seen_by_all(db: UpkeepDB) -> None:
    work = Work()
    service = run(db, work, "a")
    try:
        eventually(lambda: any(w.detail.get("steps") for w in db.workers(soon())), "a result is saved")
    finally:
        service.stop()
    [shown] = db.workers(soon())
    assert (shown.name, shown.state) == ("counting", "busy")


def test_metadb_restarted_in_the_middle_is_waited_out(own_postgres: EmbeddedPostgres) -> None:
    meta = MetaDB(MetaDBConfig(url=own_postgres.url))
    work = Work()
    service = run(UpkeepDB(meta), work, "a")
    try:
        eventually(lambda: work.steps.get("a", 0) > 20, "it works")
        own_postgres.stop()
        eventually(lambda: service.runner._lead is None, "it knows that it leads no more")
        stopped_at = work.steps["a"]
        own_postgres.start()
        eventually(lambda: work.steps["a"] > stopped_at + 20, "it works again")
    finally:
        service.stop()
        meta.close()
    assert work.overlaps == 0


# --- all of it --------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=4) as running:
        yield running


def test_a_cluster_heals_without_anybody(cluster: UpkeepCluster) -> None:
    data = bytes_of(5)
    file, hurt = cluster.upload(data), cluster.upload(bytes_of(1, 2))
    before = cluster.fragments(file)
    (id, node), (_, other) = cluster.fragments(hurt)  # nothing but a good copy can heal it
    flip(cluster.path(id, node), 9000)
    services = [
        Upkeep(cluster.config, cluster.directory, cluster.pool, not_noted, lambda _: None) for _ in range(2)
    ]
    for service in services:
        service.start()
    try:
        cluster.db.note_damage(id.slice, id.index, node, "a reader's word", soon())
        lost = cluster.stop_node(next(i for i in cluster.nodes if cluster.id(i) not in (node, other)))
        assert lost in {holder for _, holder in before}
        eventually(
            lambda: all(n not in (0, lost) for _, n in cluster.fragments(file, hurt)),
            "nothing is on the lost node any more",
        )
        eventually(lambda: cluster.db.damage_count(soon()) == 0, "the damage is mended")
        cluster.assert_whole(file, hurt)
        eventually(lambda: len(cluster.db.workers(soon())) == 5, "every worker has told its result")
    finally:
        for service in services:
            service.close()
    names = {w.name for w in cluster.db.workers(soon())}
    assert names == {"repair", "scrub", "orphans", "trash", "rebalance"}
    assert cluster.download(file) == data


def test_upkeep_that_is_switched_off_does_nothing(cluster: UpkeepCluster) -> None:
    off = replace(cluster.config, upkeep=replace(FAST, enabled=False, interval=Seconds(0.01)))
    service = Upkeep(off, cluster.directory, cluster.pool, not_noted, lambda _: None)
    service.start()
    service.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("upkeep")]
    assert cluster.db.workers(soon()) == []


def test_nothing_runs_on_after_close(cluster: UpkeepCluster) -> None:
    service = Upkeep(cluster.config, cluster.directory, cluster.pool, not_noted, lambda _: None)
    service.start()
    eventually(lambda: len(cluster.db.workers(soon())) == 5, "every worker has stepped")
    service.close()
    eventually(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("upkeep")],
        "its threads have ended",
    )
    again = Upkeep(cluster.config, cluster.directory, cluster.pool, not_noted, lambda _: None)
    again.start()
    file = cluster.upload(bytes_of(1))
    cluster.sql("UPDATE slice SET nodes[1] = 0")
    eventually(lambda: all(n for _, n in cluster.fragments(file)), "the next one leads")
    again.close()


def test_a_node_that_hangs_holds_up_no_end(cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads are waited for when the process ends, so they must not wait for the node."""
    monkeypatch.setattr(distfs.upkeep.runner, "_STOP_LIMIT_S", 0.1)
    patient = replace(cluster.config.peers, stall_timeout=Seconds(300), base_timeout=Seconds(600))
    config = replace(cluster.config, peers=patient)
    file = cluster.upload(bytes_of(1))
    [(_, node), *_] = cluster.fragments(file)
    cluster.stop_node(cluster.node(node))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        cluster.sql(
            "UPDATE node SET address = :address, stopped = false, heartbeat_at = now() + interval '1 h' "
            "WHERE id = :id",
            address=f"127.0.0.1:{silent.getsockname()[1]}",
            id=node,
        )
        with closing(NodeDirectory(cluster.meta, patient)) as directory:
            service = Upkeep(config, directory, cluster.pool, not_noted, lambda _: None)
            service.start()
            silent.accept()[0].close()  # of the look whether it can be reached; the next one is the scrub's
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)
                service.close()
                eventually(
                    lambda: not [t for t in threading.enumerate() if t.name.startswith("upkeep")],
                    "its threads have ended",
                )
