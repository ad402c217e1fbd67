"""kill -9 in the middle of repair, drain, sweep and trash: no loss, no double work, and it resumes."""

from __future__ import annotations

import contextlib
import http.client
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

from distfs.deadline import Deadline
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.peers.node_list import STALE_MOST_S
from distfs.upkeep.db import UpkeepDB
from tests.cluster import Cluster, MakeCluster, Process
from tests.cluster.healing import (
    another_service,
    noise,
    on_disk,
    settings,
    wait_no_surplus,
    wait_whole,
)
from tests.contract.litter import eventually
from tests.faults.dying import MODULE, die_at, of_node
from tests.postgres import run_sql

#: So that a sweep of a test ends within it: nothing here is uploaded or moved for as long as this.
#: A node that was dead a moment ago is asked again at once: the step is to come while the test waits.
NO_BREAKER = {"breaker_failures": 1_000_000}
AGES = {
    "upload_ttl": "1s",
    "sweep_margin": "0s",
    "sweep_interval": "300ms",
    "quarantine_ttl": "300ms",
    "trash_ttl": "300ms",
}
MADE = re.compile(r"fragment (\S+) made anew on node \d+, was on node (\d+)")
#: A stray is left: the orphan sweep may find one that repair makes at this moment.
IN_VAIN = re.compile(
    r"(?<!stray )fragment (\S+) (?:was moved or deleted by somebody else|on node (\d+) is not needed any more)"
)
ADOPTED = re.compile(r"fragment (\S+) is lost on node \d+; node (\d+) has it, too")
FILES, SIZE = 30, 100_000


def db(cluster: Cluster) -> UpkeepDB:
    return UpkeepDB(cluster.meta)


def fill(cluster: Cluster, seed: int = 0, count: int = FILES) -> dict[str, bytes]:
    """Files of one slice of four blocks; -> what each holds, by UUID."""
    contents = [noise(SIZE, 1000 * seed + number) for number in range(count)]
    return {cluster.upload(data): data for data in contents}


def fill_node(cluster: Cluster, i: int, seed: int) -> dict[str, bytes]:
    """More files, until node ``i`` keeps a few fragments of them: the service may not know yet that it is back."""
    files: dict[str, bytes] = {}
    before = set(cluster.fragments(i))
    for part in range(100):
        files |= fill(cluster, 100 * seed + part, count=6)
        if len(set(cluster.fragments(i)) - before) >= 3:
            return files
    raise AssertionError(f"node {i} is given nothing")


def lose(cluster: Cluster, i: int) -> None:
    """kill -9, and do not wait for the node."""
    cluster.kill_node(i)
    give_up(cluster, i)


def give_up(cluster: Cluster, i: int) -> None:
    """Do not wait for a node that was killed."""
    eventually(lambda: not cluster.node(i).alive, f"node {i} is down")
    db(cluster).give_up_silent_nodes(Deadline(30))


def check(cluster: Cluster, files: dict[str, bytes], step: str) -> None:
    """Every file is whole, and comes back byte for byte."""
    wait_whole(cluster, files, m=1)
    for uuid, data in files.items():
        assert cluster.download(uuid) == data, step


def wait_drained(cluster: Cluster, node: int) -> None:
    eventually(lambda: not db(cluster).fragments_left(node, Deadline(30)), f"node {node} is drained")


def trashed(cluster: Cluster) -> int:
    """Files in the trash."""
    return db(cluster).status(Deadline(30)).trash_files


def made(log: str) -> Counter[tuple[str, str]]:
    """How often a service says that it made a fragment anew: (fragment, node that kept it before)."""
    return Counter(MADE.findall(log))


def in_vain(log: str) -> set[str]:
    """Slices of which services say that somebody else had done their work.

    Not those of a fragment that the orphan sweep found where repair had just made it, and was the first to name.
    """
    adopted = set(ADOPTED.findall(log))
    return {found[0].split(".")[0] for found in IN_VAIN.findall(log) if found not in adopted}


@contextmanager
def dying(cluster: Cluster, process: Process, step: str) -> Iterator[None]:
    """In the body the process may come to the step, and must; it is dead afterwards, and ready to be started."""
    with die_at(step, cluster.folder, process.name):
        yield
        eventually(lambda: not process.alive, f"{process.name} has come to {step}")
        assert process.wait() == -9


def dies_and_resumes(cluster: Cluster, step: str, cause: Callable[[], None]) -> None:
    """Cause the work at which the service, or node 1, dies at ``step``; start it again."""
    with dying(cluster, cluster.nodes[1] if of_node(step) else cluster.service, step):
        cause()
    if of_node(step):
        cluster.start_node(1)
    else:
        cluster.start_service()


def test_repair_goes_on_after_a_kill(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, settings("1+1", upkeep=AGES, peers=NO_BREAKER), MODULE)
    files = fill(cluster)
    steps = ["upkeep-mid-slice", "upkeep-made", "upkeep-switched", "node-mid-slice", "node-after-rename"]
    for seed, step in enumerate(steps, 1):
        files |= fill_node(cluster, 1, seed)  # so that the service knows node 1 again
        log_before = made(cluster.service.log.read_text())
        on_1 = {path.name.split(".")[0] for path in cluster.fragments(1)}

        def for_node_1(i: int, others: frozenset[str] = frozenset(on_1)) -> int:
            return sum(path.name.split(".")[0] not in others for path in cluster.fragments(i))

        victim = max((0, 2, 3), key=for_node_1)
        dies_and_resumes(cluster, step, partial(lose, cluster, victim))
        check(cluster, files, step)
        log = made(cluster.service.log.read_text()) - log_before
        assert max(log.values()) == 1, f"{step}: no fragment is made twice"
        cluster.start_node(victim)
        wait_no_surplus(cluster)


def test_drain_goes_on_after_a_kill(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, settings("1+1", upkeep=AGES, peers=NO_BREAKER), MODULE)
    steps = ["upkeep-made", "upkeep-switched", "upkeep-put-aside", "keeper-put-aside"]
    for seed, step in enumerate(steps):
        files = fill_node(cluster, 1, seed)
        drained = cluster.node(1).id

        def drain(node: int = drained) -> None:
            db(cluster).set_node_state(node, "draining", Deadline(30))

        dies_and_resumes(cluster, step, drain)
        wait_drained(cluster, drained)
        wait_no_surplus(cluster)
        assert drained not in {node for node, _ in on_disk(cluster)}
        check(cluster, files, step)
        db(cluster).set_node_state(drained, "active", Deadline(30))
        eventually(lambda: cluster.node(1).writable, "it takes part again")


def test_a_sweep_goes_on_after_a_kill(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3, settings("1+1", upkeep=AGES, peers=NO_BREAKER), MODULE)
    files = fill(cluster, count=6)
    steps = ["upkeep-put-aside", "upkeep-before-discard", "keeper-put-aside", "keeper-before-discard"]
    for seed, step in enumerate(steps):
        lost = fill_node(cluster, 1, seed)

        def forget(uuids: tuple[str, ...] = tuple(lost)) -> None:
            for uuid in uuids:
                run_sql(cluster.metadb_url, "DELETE FROM slice WHERE file_id = :id", id=uuid)
                run_sql(cluster.metadb_url, "DELETE FROM file WHERE id = :id", id=uuid)

        dies_and_resumes(cluster, step, forget)
        wait_no_surplus(cluster)
        check(cluster, files, step)


def test_trash_goes_on_after_a_kill(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3, settings("1+1", upkeep=AGES, peers=NO_BREAKER), MODULE)
    files = fill(cluster, count=6)
    for seed, step in enumerate(("upkeep-put-aside", "upkeep-before-drop", "keeper-put-aside")):
        deleted = fill_node(cluster, 1, seed)
        dies = cluster.nodes[1] if of_node(step) else cluster.service

        def died_of_one_more(dies: Process = dies) -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):
                uuid = cluster.request("PUT", "/upload/more", noise(SIZE)).text.strip()
                cluster.request("DELETE", f"/files/{uuid}")
            return not dies.alive

        def delete(
            uuids: tuple[str, ...] = tuple(deleted),
            died: Callable[[], bool] = died_of_one_more,
            step: str = step,
        ) -> None:
            """And more files: those that end while a node is thought to be down are not asked of it."""
            for uuid in uuids:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    cluster.request("DELETE", f"/files/{uuid}")
            eventually(died, f"it has come to {step}")

        dies_and_resumes(cluster, step, delete)
        eventually(lambda: trashed(cluster) == 0, f"{step}: the trash is empty")
        wait_no_surplus(cluster)
        check(cluster, files, step)


def test_of_two_services_with_upkeep_none_does_what_the_other_did(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(5, settings("1+1", upkeep=AGES, peers=NO_BREAKER))
    files = fill(cluster, count=40)
    gone = fill(cluster, seed=1, count=10)
    lost_and_drained = {cluster.node(0).id, cluster.node(1).id}
    of_one_worker = {  # the others are repaired and drained at once
        str(piece.id)
        for uuid in files
        for piece in cluster.meta.file(UUID(uuid), Deadline(30)).slices
        if not lost_and_drained <= set(piece.nodes)
    }
    with another_service(cluster) as (second, second_url):
        db(cluster).set_node_state(cluster.node(1).id, "draining", Deadline(30))
        lose(cluster, 0)
        for uuid in gone:
            assert cluster.request("DELETE", f"/files/{uuid}").status == 204
        check(cluster, files, "two services")
        wait_drained(cluster, cluster.node(1).id)
        wait_no_surplus(cluster)
        logs = cluster.service.log.read_text() + second.log.read_text()
        assert max(made(logs).values()) == 1
        # Repair may have made one on the drained node, which it knew a moment too short to be draining.
        refused = set(re.findall(rf"fragment (\S+)\.\d on node {cluster.node(1).id} is not needed", logs))
        assert not in_vain(logs) & (of_one_worker - refused)
        # the one that leads is killed: the other goes on
        cluster.start_node(0)
        cluster.kill_service()
        cluster.url = second_url
        lose(cluster, 2)
        check(cluster, files, "the first service is gone")


def test_a_disk_that_fills_up_during_repair_is_not_the_only_one(make_cluster: MakeCluster) -> None:
    """The full one is in a zone of its own, so everything would rather go there."""
    cluster = make_cluster(3, settings("1+1"))
    files = fill(cluster)
    name = "full-node"
    argv = [
        sys.executable,
        "-m",
        "tests.faults.full_node",
        "--init",
        "--port",
        "0",
        "--data",
        name,
        "--zone",
        "other",
    ]
    full = Process(name, argv, cluster.folder, cluster.folder / f"{name}.log")
    (cluster.folder / "full").touch()  # before anything can be moved there
    full.start()
    try:
        eventually(lambda: any(n.zone == "other" for n in cluster.meta.nodes(Deadline(30))), "it is there")
        known = time.monotonic() + STALE_MOST_S  # the service's nodes are those of a moment ago
        cluster.kill_node(0)
        eventually(lambda: time.monotonic() > known, "repair knows of the full one")
        give_up(cluster, 0)
        check(cluster, files, "disk full")
        for words in ("cannot take it", "the disk is full"):
            eventually(lambda w=words: w in cluster.service.log.read_text(), "its log says so")  # type: ignore[misc]
        assert not list((cluster.folder / name / "data").rglob("*.*"))
    finally:
        full.kill()


def test_repair_goes_on_when_metadb_was_restarted(own_postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    config = settings("1+1", upkeep={"repair_rate": "1MiB/s"})
    with Cluster(tmp_path / "cluster", own_postgres.url, 4, config) as cluster:
        files = fill(cluster, count=40)
        lost = len(cluster.fragments(0))
        lose(cluster, 0)
        eventually(lambda: made(cluster.service.log.read_text()), "repair has begun")
        own_postgres.stop()
        assert len(made(cluster.service.log.read_text())) < lost, "and had not ended"
        own_postgres.start()
        cluster.wait_ready()
        check(cluster, files, "MetaDB was restarted")
        assert max(made(cluster.service.log.read_text()).values()) == 1
