"""MetaDB's copies that the cluster keeps itself: made, kept, hidden, and what a lost MetaDB is made of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from uuid import UUID

import pytest

from distfs.config import file as configuration
from distfs.config.settings import Seconds
from distfs.deadline import Deadline
from distfs.errors import Unavailable
from distfs.metadb.copies import MAGIC
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.model import copied_at, copy_id, is_copy
from distfs.services import build
from distfs.upkeep.copies import Copies
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.step import Pace
from tests.cluster import Cluster, MakeCluster, eventually
from tests.cluster.harness import ROOT, clean_environment
from tests.cluster.operating import BY_HAND, QUICK, SLICE, Ended, distfs, fragments_of, url_of
from tests.cluster.test_rebuild import REBUILD, cluster_of, erase
from tests.postgres import run_sql

KEPT = "SELECT id, name FROM file WHERE id::text LIKE '6d657461-6462-80%' ORDER BY id"


def ids(cluster: Cluster, deletions: bool = False) -> list[UUID]:
    """Of the copies that MetaDB knows, or of the lists of deletions, the oldest first."""
    return [id for id, _ in run_sql(url_of(cluster), KEPT) if copied_at(id)[1] == deletions]


def restore(cluster: Cluster, *flags: str) -> Ended:
    given = "--from-nodes", "--cluster", str(cluster_of(cluster))
    return distfs(cluster, "metadb", "restore", *given, *flags)


@contextmanager
def worker(cluster: Cluster) -> Iterator[Copies]:
    """That of a service, in this process, which is told when to step."""
    services = build(configuration.load(str(cluster.folder / "config.yml")))
    with closing(services):
        yield Copies(UpkeepDB(services.meta), services.meta, services.uploader, services.config, 0.0)


def settle(copies: Copies) -> None:
    """Until nothing is due."""

    def idle() -> bool:
        return copies.step(Deadline(60)).pace is Pace.IDLE

    eventually(idle, "a copy is made")
    while copies.step(Deadline(60)).pace is Pace.BUSY:
        pass


def test_what_is_reserved_is_known_by_its_id() -> None:
    at = 1_800_000_000.123
    assert copied_at(copy_id(at)) == (at, False)
    assert copied_at(copy_id(at, deletions=True)) == (at, True)
    assert is_copy(copy_id(0))
    assert is_copy(copy_id(2**47 / 1000, deletions=True))
    assert copy_id(1) < copy_id(2)
    assert not any(is_copy(UUID(bytes=os.urandom(16), version=4)) for _ in range(100))


def test_services_keep_so_many_copies_and_no_client_is_told_of_them(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={**QUICK, "metadb": {"backup_every": "500ms", "backup_keep": 2}})
    uuid = cluster.upload(b"a file")
    eventually(lambda: len(ids(cluster)) >= 2, "copies are made")
    first = ids(cluster)[0]
    eventually(lambda: first not in ids(cluster) and len(ids(cluster)) == 2, "the oldest goes")
    listed = cluster.request("GET", "/files").text
    assert uuid in listed
    assert "6d657461" not in listed
    newest = ids(cluster)[-1]
    for method, path in (
        ("GET", f"/download/{newest}"),
        ("GET", f"/files/{newest}"),
        ("DELETE", f"/files/{newest}"),
    ):
        assert cluster.request(method, path).status == 404, (method, path)
    assert run_sql(url_of(cluster), "SELECT count(*) FROM trash WHERE id = :id", id=newest) == [[0]]


def test_the_newest_copy_comes_back_with_what_came_and_went_since(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=4, config={**BY_HAND, "metadb": {"backup_every": "1h"}})
    url = url_of(cluster)
    files = {cluster.upload(data, "of before"): data for data in (os.urandom(i * 9000) for i in range(12))}
    token = distfs(cluster, "token", "create", "--owner", "anna", "--scopes", "upload").out.strip()
    assert token
    run_sql(url, "UPDATE file SET owner = 'anna', visibility = 'link', name = 'renamed'")
    deleted, undeleted, late_deleted, purged = list(files)[:4]
    cluster.request("DELETE", f"/files/{undeleted}")
    with worker(cluster) as copies:
        assert copies.step(Deadline(60)).detail["copies"] == 0, "the cluster is young"
        run_sql(url, "UPDATE cluster SET created_at = now() - interval '2h'")
        settle(copies)
        assert len(ids(cluster)) == 1
        late = {cluster.upload(data, "late"): data for data in (b"l", os.urandom(3 * SLICE))}
        first_late = next(iter(late))
        for each in (deleted, late_deleted, purged, first_late):
            assert cluster.request("DELETE", f"/files/{each}").status == 204
        settle(copies)
        assert [name for id, name in run_sql(url, KEPT) if copied_at(id)[1]] == ["deleted 4"]
        settle(copies)
        assert len(ids(cluster, deletions=True)) == 1, "the same is not listed again"
        assert distfs(cluster, "undelete", late_deleted).code == 0
        settle(copies)
        assert [name for id, name in run_sql(url, KEPT) if copied_at(id)[1]] == ["deleted 3"]
    assert distfs(cluster, "undelete", undeleted).code == 0
    [[slice_]] = run_sql(url, "SELECT id FROM trash_slice WHERE file_id = :id AND ordinal = 0", id=purged)
    cluster.stop_service()
    for path in fragments_of(cluster, slice_, nodes=4):  # as after its time in the trash
        path.unlink()
    erase(cluster)
    told = restore(cluster)
    assert told.code == 0, told.out + told.err
    assert f"deleted: {deleted} " in told.out
    assert f"deleted: {first_late} " in told.out
    cluster.start_service()
    expected = (files | late).keys() - {deleted, purged, undeleted, first_late}
    for uuid in expected:
        assert cluster.download(uuid) == (files | late)[uuid]
    for uuid in (deleted, first_late):
        assert cluster.request("GET", f"/download/{uuid}").status == 404
    rows = run_sql(url, "SELECT name, owner, visibility FROM file WHERE id = :id", id=late_deleted)
    assert rows == [["renamed", "anna", "link"]]
    assert distfs(cluster, "token", "list").out.count("anna") == 1
    assert distfs(cluster, "undelete", deleted).code == 0
    assert cluster.download(deleted) == files[deleted]
    assert distfs(cluster, "metadb", "rebuild", "--from-nodes", "--finish").code == 0


def test_what_a_copy_has_and_the_disks_have_not_is_told(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={**BY_HAND, "metadb": {"backup_every": "1h"}})
    url = url_of(cluster)
    lost, stays = cluster.upload(os.urandom(500), "lost"), cluster.upload(b"stays")
    run_sql(url, "UPDATE cluster SET created_at = now() - interval '2h'")
    with worker(cluster) as copies:
        settle(copies)
    [[slice_]] = run_sql(url, "SELECT id FROM slice WHERE file_id = :id", id=lost)
    cluster.stop_service()
    for path in fragments_of(cluster, slice_, nodes=3):
        path.unlink()
    erase(cluster)
    told = restore(cluster)
    assert told.code == 0, told.out + told.err
    assert f"gone: {lost} 'lost'" in told.out
    assert f"gone: {stays}" not in told.out
    fsck = distfs(cluster, "fsck", "--json")
    assert (fsck.code, lost in fsck.out, stays in fsck.out) == (1, True, False), fsck.out
    again = restore(cluster)
    assert again.code == 0, again.out + again.err


@contextmanager
def held_up(url: str, statement: str) -> Iterator[None]:
    """Whoever changes a table by such a statement waits for as long as this lasts."""
    run_sql(url, "CREATE SCHEMA IF NOT EXISTS gate")
    run_sql(
        url,
        "CREATE OR REPLACE FUNCTION gate.wait() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF current_query() LIKE '{statement}' THEN PERFORM pg_advisory_xact_lock_shared(4242); END IF; END $$",
    )
    run_sql(url, "CREATE EVENT TRIGGER gate ON ddl_command_end EXECUTE FUNCTION gate.wait()")
    parsed = MetaURL.parse(url)
    with closing(Link(parsed, parsed.hosts[0], Deadline(60), 0)) as link:
        link.raw._usock.settimeout(120)
        link.raw.run("SELECT pg_advisory_lock(4242)")
        yield
    run_sql(url, "DROP EVENT TRIGGER gate")


@pytest.mark.parametrize("statement", ["%ADD COLUMN%", "%DISABLE TRIGGER%"])
def test_a_restore_that_is_killed_is_done_again(make_cluster: MakeCluster, statement: str) -> None:
    """While it migrates what gave way to the copy, and while it loads the copy."""
    cluster = make_cluster(config={**BY_HAND, "metadb": {"backup_every": "1h"}})
    url = url_of(cluster)
    files = {cluster.upload(data): data for data in (os.urandom(2 * SLICE), b"small")}
    run_sql(url, "UPDATE cluster SET created_at = now() - interval '2h'")
    with worker(cluster) as copies:
        settle(copies)
    files |= {cluster.upload(data): data for data in (os.urandom(3 * SLICE), b"late")}
    cluster.stop_service()
    erase(cluster)
    assert restore(cluster, "--metadb", url).code == 0
    run_sql(url, "DELETE FROM slice")
    run_sql(url, "DELETE FROM file")
    run_sql(url, "DELETE FROM rebuild_copy")  # as it is before the copy is loaded
    command = [sys.executable, "-m", "distfs", "metadb", "restore", "--from-nodes", "--metadb", url]
    command += ["--cluster", str(cluster_of(cluster)), "--config", str(cluster.folder / "config.yml")]
    with held_up(url, statement):
        running = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.DEVNULL)
        waits = "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = 4242"
        eventually(lambda: run_sql(url, waits), "it is in the middle")
        running.kill()
        running.wait(60)
    told = restore(cluster)
    assert told.code == 0, told.out + told.err
    cluster.start_service()
    assert {uuid: cluster.download(uuid) for uuid in files} == files


def test_without_a_copy_or_an_empty_metadb_nothing_is_restored(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=BY_HAND)
    uuid = cluster.upload(b"a file")
    told = restore(cluster)
    assert (told.code, "has files: name a new database" in told.err) == (1, True), told.err
    cluster.stop_service()
    erase(cluster)
    told = restore(cluster)
    assert (told.code, "keep no copy of MetaDB that can be read" in told.err) == (1, True), told.err
    told = distfs(cluster, "metadb", "restore")
    assert (told.code, "or give --from-nodes" in told.err) == (2, True), told.err
    assert distfs(cluster, "metadb", "rebuild", "--from-nodes").code == 0, "nothing stands in its way"
    cluster.start_service()
    assert cluster.download(uuid) == b"a file"


def test_a_restore_from_nodes_is_of_the_copy_whatever_was_made_between_its_runs(
    make_cluster: MakeCluster,
) -> None:
    """A first run that finds no node makes MetaDB the cluster's; then `distfs up` makes its first token. Where a
    file came between, it is refused in words."""
    cluster = make_cluster(config={**BY_HAND, "metadb": {"backup_every": "1h"}})
    url = url_of(cluster)
    uuid = cluster.upload(b"a file")
    run_sql(url, "UPDATE file SET owner = 'anna'")
    run_sql(url, "UPDATE cluster SET created_at = now() - interval '2h'")
    with worker(cluster) as copies:
        settle(copies)
    cluster.stop_service()
    erase(cluster)
    assert distfs(cluster, *REBUILD, "--dry-run", "--cluster", str(cluster_of(cluster))).code == 0, (
        "it is begun"
    )
    assert distfs(cluster, "token", "create", "--first").code == 0
    cluster.start_service()
    between = cluster.upload(b"between")
    told = restore(cluster)
    assert (told.code, "has files: name a new database" in told.err) == (1, True), told.out + told.err
    cluster.stop_service()
    run_sql(url, "DELETE FROM slice")
    run_sql(url, "DELETE FROM file")
    for _ in range(2):
        told = restore(cluster)
        assert told.code == 0, told.out + told.err
        assert run_sql(url, "SELECT owner FROM file WHERE id = :id", id=uuid) == [["anna"]]
    assert run_sql(url, "SELECT count(*) FROM file WHERE id = :id", id=between) == [[1]]


def purge(copies: Copies, cluster: Cluster, uuid: str) -> None:
    """As after its time in the trash; its fragments are on the disks, as they are in quarantine."""
    assert cluster.request("DELETE", f"/files/{uuid}").status == 204
    run_sql(url_of(cluster), "UPDATE trash SET purge_at = now() WHERE id = :id", id=uuid)
    assert copies._upkeep.drop_trash(UUID(uuid), Deadline(60))


def test_what_was_deleted_and_purged_since_the_copy_does_not_come_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={**BY_HAND, "metadb": {"backup_every": "1h"}})
    url = url_of(cluster)
    before, since, stays = (cluster.upload(data) for data in (b"before", b"since", b"stays"))
    run_sql(url, "UPDATE cluster SET created_at = now() - interval '2h'")
    with worker(cluster) as copies:
        purge(copies, cluster, before)
        assert run_sql(url, "SELECT id FROM purged") == [], "there is no copy that has it"
        settle(copies)
        purge(copies, cluster, since)
        settle(copies)
        assert [name for id, name in run_sql(url, KEPT) if copied_at(id)[1]] == ["deleted 1"]
        assert run_sql(url, "SELECT id::text FROM purged") == [[since]]
        copies._db.forget_purged(0.0, Deadline(60))
        assert run_sql(url, "SELECT id::text FROM purged") == [[since]]
    cluster.stop_service()
    erase(cluster)
    told = restore(cluster)
    assert told.code == 0, told.out + told.err
    assert f"deleted: {since} " in told.out
    cluster.start_service()
    assert cluster.request("GET", f"/download/{since}").status == 404
    assert cluster.download(stays) == b"stays"


def test_a_file_that_is_deleted_for_good_during_a_rebuild_stays_so(make_cluster: MakeCluster) -> None:
    """Nodes that were read are not read again: what was found of it is still there. The next copy knows all."""
    cluster = make_cluster(config={**BY_HAND, "metadb": {"backup_every": "1h"}})
    url = url_of(cluster)
    gone, stays = cluster.upload(b"gone"), cluster.upload(b"stays")
    cluster.stop_service()
    erase(cluster)
    rebuild = (*REBUILD, "--cluster", str(cluster_of(cluster)))
    assert distfs(cluster, *rebuild).code == 0
    cluster.start_service()
    with worker(cluster) as copies:
        purge(copies, cluster, gone)
        told = distfs(cluster, *rebuild)
        assert (told.code, "0 files of" in told.out) == (0, True), told.out + told.err
        assert cluster.request("GET", f"/download/{gone}").status == 404
        assert cluster.download(stays) == b"stays"
        assert distfs(cluster, *rebuild, "--finish").code == 0
        run_sql(url, "UPDATE cluster SET created_at = now() - interval '2h'")
        settle(copies)
        assert run_sql(url, "SELECT id FROM purged") == []


@pytest.mark.parametrize("listed_again", [False, True])
def test_where_an_older_copy_is_taken_deletions_since_that_count(
    make_cluster: MakeCluster, listed_again: bool
) -> None:
    """The newest cannot be read. Of what was deleted between the two no list tells, once there is one that begins
    with the newest."""
    cluster = make_cluster(config={**BY_HAND, "metadb": {"backup_every": "1h"}})
    url = url_of(cluster)
    between, after = cluster.upload(b"between"), cluster.upload(b"after")
    run_sql(url, "UPDATE cluster SET created_at = now() - interval '2h'")
    with worker(cluster) as copies:
        settle(copies)
        assert cluster.request("DELETE", f"/files/{between}").status == 204
        settle(copies)
        every, copies._every = copies._every, Seconds(0.001)
        copies.step(Deadline(60))
        copies._every = every
        settle(copies)
        _, newest = ids(cluster)
        if listed_again:
            assert cluster.request("DELETE", f"/files/{after}").status == 204
            settle(copies)
    [[slice_]] = run_sql(url, "SELECT id FROM slice WHERE file_id = :id", id=newest)
    cluster.stop_service()
    hurt = 0
    for path in fragments_of(cluster, slice_, nodes=3):
        data = path.read_bytes()
        path.write_bytes(data.replace(MAGIC, bytes(len(MAGIC))))
        hurt += MAGIC in data
    assert hurt == 2
    erase(cluster)
    told = restore(cluster)
    assert f"not read: the copy {newest}: " in told.out
    assert "not known: what was deleted from " in told.out
    assert (f"deleted: {between} " in told.out) is not listed_again, told.out
    assert (f"deleted: {after} " in told.out) is listed_again, told.out


def test_a_copy_whose_rows_end_in_the_middle_is_none(make_cluster: MakeCluster) -> None:
    """MetaDB ends the connection while it waits for a table; the next try makes one."""
    cluster = make_cluster(config={**BY_HAND, "metadb": {"backup_every": "1h"}})
    url = url_of(cluster)
    cluster.upload(b"a file")
    run_sql(url, "UPDATE cluster SET created_at = now() - interval '2h'")
    waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'slice'::regclass"
    parsed = MetaURL.parse(url)
    with worker(cluster) as copies, closing(Link(parsed, parsed.hosts[0], Deadline(60), 120)) as link:
        link.raw._usock.settimeout(120)
        link.raw.run("BEGIN")
        link.raw.run("LOCK TABLE slice IN ACCESS EXCLUSIVE MODE")
        copies.step(Deadline(60))
        eventually(lambda: run_sql(url, waiting), "its rows are wanted")
        run_sql(url, f"SELECT pg_terminate_backend(pid) FROM ({waiting}) AS waits")  # noqa: S608
        with pytest.raises(Unavailable, match="lost"):
            eventually(lambda: copies.step(Deadline(60)).pace is Pace.IDLE, "it says so")
        link.raw.run("ROLLBACK")
        assert ids(cluster) == []
        settle(copies)
    assert len(ids(cluster)) == 1


def test_a_copy_that_no_node_takes_is_made_when_they_are_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={**BY_HAND, "metadb": {"backup_every": "1h"}})
    run_sql(url_of(cluster), "UPDATE cluster SET created_at = now() - interval '2h'")
    for i in range(3):
        cluster.stop_node(i)
    with worker(cluster) as copies:
        copies.step(Deadline(60))
        with pytest.raises(Unavailable):
            eventually(lambda: copies.step(Deadline(60)).pace is Pace.IDLE, "it says so")
        assert ids(cluster) == []
        for i in range(3):
            cluster.start_node(i)
        settle(copies)
    assert len(ids(cluster)) == 1
