"""A MetaDB that was lost, made anew from the disks of the nodes: exact where it can be, told where it cannot."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from distfs.deadline import Deadline
from distfs.formats.features import sha256_in
from distfs.formats.fragment import FOOTER_SIZE, read_layout
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.storage.disk.home import require_identity
from tests import nursery
from tests.cluster import Cluster, MakeCluster, eventually
from tests.cluster.harness import PATIENCE_S, ROOT, clean_environment
from tests.cluster.operating import BY_HAND, QUICK, SLICE, Ended, distfs, fragments_of, url_of
from tests.cluster.test_up import StartUp, curl
from tests.postgres import run_sql

REBUILD = ("metadb", "rebuild", "--from-nodes")
FILES = int(os.environ.get("DISTFS_TEST_FILES", "60"))
#: What a row has that a disk does not tell exactly.
ROWS = """
SELECT f.id, name, content_type, f.size, sha256, k, m, block_size, s.id, ordinal, s.size, digest, nodes
FROM file AS f JOIN slice AS s ON s.file_id = f.id ORDER BY f.id, ordinal"""
#: Bytes as they are stored: exact where a block is one cell.
STORED = "SELECT id, stored FROM file WHERE k = 1 ORDER BY id"
POLICIES = {"default": "1+1", "three": "1+2", "coded": "2+1"}
WITH_POLICIES = {**BY_HAND, "storage": {**BY_HAND["storage"], "policies": POLICIES, "compression": "zstd"}}


def erase(cluster: Cluster) -> None:
    """All of MetaDB is lost; the nodes run on, and ask an empty database."""
    run_sql(url_of(cluster), "DROP SCHEMA public CASCADE")
    run_sql(url_of(cluster), "CREATE SCHEMA public")


def rebuild(cluster: Cluster, *flags: str) -> Ended:
    return distfs(cluster, *REBUILD, "--cluster", str(cluster_of(cluster)), *flags)


def cluster_of(cluster: Cluster) -> UUID:
    of = require_identity(cluster.node_folder(0)).cluster
    assert of is not None
    return of


def fill(cluster: Cluster, count: int) -> dict[str, bytes]:
    """Files of mixed sizes, policies and names, over one connection; -> what each holds, by UUID."""
    numbers = random.Random(1)
    files = {}
    connection = cluster.connect()
    try:
        for i in range(count):
            size = numbers.choice([1, 500, 16 * 1024, 16 * 1024 + 1, SLICE, SLICE + 1, 3 * SLICE + 100])
            policy = numbers.choice(list(POLICIES))
            data = numbers.randbytes(size) if i % 3 else f"{i} is text\n".encode() * (size // 10 + 1)
            connection.request(
                "PUT",
                f"/upload/gr%C3%BC%C3%9Fe%20{i}.bin?policy={policy}",
                data,
                {"Content-Type": "text/plain; charset=utf-8" if i % 2 else "image/png"},
            )
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status == 201, text
            files[text.strip()] = data
    finally:
        connection.close()
    return files


def nodes_of(cluster: Cluster) -> dict[UUID, int]:
    return dict(run_sql(url_of(cluster), "SELECT uuid, id FROM node"))


def same_nodes(rows: list[list[Any]], before: dict[UUID, int], after: dict[UUID, int]) -> list[list[Any]]:
    """Rows of before as they are by the ids that nodes have after."""
    now = {before[uuid]: after[uuid] for uuid in before} | {0: 0}
    return [[*row[:-1], [now[node] for node in row[-1]]] for row in rows]


def test_a_lost_metadb_is_made_anew_from_the_nodes_exactly(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=4, config=WITH_POLICIES)
    files = fill(cluster, FILES)
    text = b"text\n" * SLICE  # of several slices, since a first slice as small as ours is kept as it is
    files[cluster.upload(text)] = text
    rows, nodes = run_sql(url_of(cluster), ROWS), nodes_of(cluster)
    stored = run_sql(url_of(cluster), STORED)
    assert any(each is not None for _, each in stored), "some are compressed"
    [[cluster_id]] = run_sql(url_of(cluster), "SELECT id FROM cluster")
    assert rebuild(cluster, "--dry-run").code == 0
    unfinished = rebuild(cluster, "--finish")
    assert "is not being rebuilt" in unfinished.err, "a look at a MetaDB that is well leaves no mark"
    cluster.stop_service()
    erase(cluster)
    dry = rebuild(cluster, "--dry-run")
    assert dry.code == 0, dry.out + dry.err
    assert f"{len(files):,} files of " in dry.out
    assert run_sql(url_of(cluster), "SELECT count(*) FROM file") == [[0]]
    told = rebuild(cluster)
    assert told.code == 0, told.out + told.err
    assert run_sql(url_of(cluster), "SELECT id FROM cluster") == [[cluster_id]]
    assert run_sql(url_of(cluster), ROWS) == same_nodes(rows, nodes, nodes_of(cluster))
    assert run_sql(url_of(cluster), STORED) == stored
    again = rebuild(cluster)
    assert (again.code, "0 files of" in again.out) == (0, True), again.out
    cluster.start_service()
    assert {uuid: cluster.download(uuid) for uuid in files} == files
    fsck = distfs(cluster, "fsck", "--json")
    assert fsck.code == 0, fsck.out
    assert fsck.entry["unknown"] == [], "nothing is left over"
    assert cluster.download(cluster.upload(b"more")) == b"more"
    assert rebuild(cluster, "--finish").code == 0
    assert rebuild(cluster, "--finish").code == 1


def test_what_is_not_whole_or_disagrees_is_told_and_not_made(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=BY_HAND)
    whole, cut, headless, torn, short = (
        cluster.upload(os.urandom(2 * SLICE), name) for name in ("whole", "cut", "headless", "torn", "short")
    )
    slices = {
        (str(file), ordinal): str(id)
        for file, ordinal, id in run_sql(url_of(cluster), "SELECT file_id, ordinal, id FROM slice")
    }
    cluster.stop_service()

    def on_disks(file: str, ordinal: int) -> list[Path]:
        found = [
            p for i in range(3) for p in cluster.fragments(i) if p.name.startswith(slices[file, ordinal])
        ]
        assert len(found) == 2
        return found

    for path in on_disks(cut, 1):  # both copies of the last slice: as an upload that never ended
        path.unlink()
    for path in on_disks(headless, 0):
        path.unlink()
    for path in on_disks(torn, 0):
        path.write_bytes(path.read_bytes()[:-FOOTER_SIZE])
    on_disks(short, 1)[0].unlink()
    erase(cluster)
    told = rebuild(cluster)
    assert told.code == 1, told.out
    assert told.err == ""
    lines = told.out.splitlines()
    listed = {line.split()[1]: line for line in lines if line.startswith("incomplete: ")}
    assert listed.keys() == {cut, headless, torn}
    assert "its end is not there, only its first 1 slice" in listed[cut]
    assert "slice 0 has 0 of the 1 fragment" in listed[headless]
    assert sum(line.startswith("unreadable: ") for line in lines) == 2
    assert "of them, 1 lack" in told.out
    cluster.start_service()
    assert len(cluster.download(whole)) == len(cluster.download(short)) == 2 * SLICE
    assert cluster.request("GET", f"/download/{cut}").status == 404


def said_of_file(path: Path) -> bytes | None:
    """The sha-256 that a fragment's end has."""
    data = path.read_bytes()
    layout = read_layout(len(data), lambda length, offset: data[offset : offset + length])
    return sha256_in(layout.table.extra)


def test_the_sha_256_is_on_the_disks_of_the_last_slice_also_of_fragments_made_anew(
    make_cluster: MakeCluster,
) -> None:
    """So no byte of a file need be read to make MetaDB anew."""
    cluster = make_cluster(nodes=4, config={**QUICK, "storage": WITH_POLICIES["storage"]})
    data = os.urandom(2 * SLICE + 5)
    files = {}
    for policy in POLICIES:
        answer = cluster.request("PUT", f"/upload/x?policy={policy}", data)
        assert answer.status == 201, answer.text
        files[answer.text.strip()] = policy
    last = {
        str(id): files[str(file)]
        for file, id in run_sql(url_of(cluster), "SELECT file_id, id FROM slice WHERE ordinal = 2")
    }

    def kept(policy: str) -> dict[str, Path]:
        slices = [id for id, of in last.items() if of == policy]
        found = [p for i in range(4) for p in cluster.fragments(i) if p.name.split(".")[0] in slices]
        return {path.name: path for path in found}

    for policy, width in (("default", 2), ("three", 3), ("coded", 3)):
        before = kept(policy)
        assert len(before) == width
        assert {said_of_file(path) for path in before.values()} == {hashlib.sha256(data).digest()}
        lost = before[min(before)]
        lost.unlink()
        assert distfs(cluster, "fsck").code == 1
        eventually(lambda of=policy, count=width: len(kept(of)) == count, "it is made anew")  # type: ignore[misc]
        assert {said_of_file(path) for path in kept(policy).values()} == {hashlib.sha256(data).digest()}
    cluster.stop_service()
    erase(cluster)
    told = rebuild(cluster)
    assert told.code == 0, told.out
    assert "sha-256" not in told.out
    shas = run_sql(url_of(cluster), "SELECT DISTINCT sha256 FROM file")
    assert shas == [[hashlib.sha256(data).digest()]]


def test_a_file_that_was_renamed_before_a_fragment_was_made_anew_is_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=3, config=QUICK)
    data = os.urandom(2 * SLICE)
    uuid = cluster.upload(data, "first")
    assert cluster.request("PATCH", f"/files/{uuid}", b'{"name": "renamed"}').status == 200
    [[slice_, nodes]] = run_sql(url_of(cluster), "SELECT id, nodes FROM slice WHERE ordinal = 1")

    def kept() -> list[Path]:
        return fragments_of(cluster, slice_, nodes=3)

    kept()[0].unlink()
    distfs(cluster, "fsck")  # which finds it, if upkeep was not quicker
    eventually(lambda: len(kept()) == len(nodes), "it is made anew")
    assert sum(b"renamed" in path.read_bytes()[:4096] for path in kept()) == 1
    cluster.stop_service()
    erase(cluster)
    told = rebuild(cluster)
    assert told.code == 0, told.out + told.err
    assert run_sql(url_of(cluster), "SELECT name FROM file") == [["renamed"]]
    cluster.start_service()
    assert cluster.download(uuid) == data


def test_a_node_that_comes_later_completes_what_was_not_there(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=BY_HAND)
    files = {cluster.upload(data): data for data in [os.urandom(3 * SLICE) for _ in range(8)]}
    cluster.stop_service()
    cluster.stop_node(1)
    cluster.stop_node(2)
    erase(cluster)
    first = rebuild(cluster)
    assert (first.code, "incomplete: " in first.out) == (1, True), first.out
    for i in (1, 2):
        cluster.nodes[i].start()
    told = rebuild(cluster)
    assert told.code == 0, told.out + told.err
    cluster.start_service()
    assert {uuid: cluster.download(uuid) for uuid in files} == files


def test_a_backup_gets_what_the_disks_have_beside_it(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(config=BY_HAND)
    url = url_of(cluster)
    before, late = os.urandom(2 * SLICE), os.urandom(3 * SLICE)
    old = cluster.upload(before, "old")
    run_sql(url, "UPDATE file SET owner = 'anna'")
    assert distfs(cluster, "metadb", "backup", str(tmp_path / "one.copy")).code == 0
    new = cluster.upload(late, "new")
    cluster.stop_service()
    erase(cluster)
    told = distfs(cluster, "metadb", "restore", str(tmp_path / "one.copy"))
    assert told.code == 0, told.err
    told = distfs(cluster, *REBUILD)
    assert told.code == 0, told.out + told.err
    assert "1 file of " in told.out
    cluster.start_service()
    assert (cluster.download(old), cluster.download(new)) == (before, late)
    assert run_sql(url, "SELECT owner FROM file ORDER BY owner") == [["anna"], [None]]
    assert distfs(cluster, "fsck").code == 0


def test_upkeep_takes_nothing_for_garbage_until_it_is_told_that_all_is_there(
    make_cluster: MakeCluster,
) -> None:
    upkeep = {"interval": "50ms", "upload_ttl": "1s", "sweep_margin": "0s", "sweep_interval": "100ms"}
    cluster = make_cluster(config={**QUICK, "upkeep": {**upkeep, "quarantine_ttl": "1h"}})
    lost = cluster.upload(os.urandom(2 * SLICE))
    [[last]] = run_sql(url_of(cluster), "SELECT id FROM slice WHERE ordinal = 1")
    cluster.stop_service()
    for path in fragments_of(cluster, last, nodes=3):
        path.unlink()
    erase(cluster)
    assert rebuild(cluster).code == 1
    cluster.start_service()

    def swept() -> str:
        rows = run_sql(url_of(cluster), "SELECT detail::text FROM worker WHERE name = 'orphans'")
        return str(rows[0][0]) if rows else ""

    eventually(lambda: "--finish" in swept(), "the sweep says why it stands still")
    assert sum(len(cluster.fragments(i)) for i in range(3)) == 2, lost
    assert rebuild(cluster, "--finish").code == 0
    eventually(
        lambda: sum(len(cluster.fragments(i)) for i in range(3)) == 0, "what no file names is put aside"
    )


def test_another_clusters_metadb_is_not_taken(
    make_cluster: MakeCluster, make_database: Callable[[str], str]
) -> None:
    cluster = make_cluster(config=BY_HAND)
    cluster.upload(b"here")
    other = make_database("migrated")
    run_sql(other, "UPDATE cluster SET id = gen_random_uuid()")
    run_sql(
        other,
        "INSERT INTO node (uuid, address, zone, capacity, used, free, state)"
        " VALUES (gen_random_uuid(), 'a:1', 'z', 1, 0, 1, 'active')",
    )
    told = rebuild(cluster, "--metadb", other)
    assert (told.code, "another cluster's than" in told.err) == (1, True), told.err
    empty = make_database("template1")
    told = distfs(cluster, *REBUILD, "--metadb", empty)
    assert told.code == 2
    assert "Name the cluster of its storage nodes with --cluster" in told.err
    assert run_sql(empty, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [[0]]


@pytest.mark.parametrize("at", ["scan", "write"])
def test_a_rebuild_that_is_killed_goes_on_where_it_was(make_cluster: MakeCluster, at: str) -> None:
    """It is stopped at a row of MetaDB that it wants to write, and killed there."""
    cluster = make_cluster(config=BY_HAND)
    files = {cluster.upload(data): data for data in [os.urandom(2 * SLICE) for _ in range(5)]}
    cluster.stop_service()
    erase(cluster)
    assert rebuild(cluster, "--dry-run").code == 0
    url = url_of(cluster)
    if at == "scan":
        run_sql(url, "DELETE FROM rebuild_node WHERE node_id > 1")
        run_sql(url, "UPDATE rebuild_node SET cursor = ''")
    table = "rebuild_node" if at == "scan" else "file"
    command = [sys.executable, "-m", "distfs", *REBUILD, "--cluster", str(cluster_of(cluster))]
    command += ["--config", str(cluster.folder / "config.yml")]
    parsed = MetaURL.parse(url)
    with closing(Link(parsed, parsed.hosts[0], Deadline(60), statement_timeout=120)) as link:
        link.raw._usock.settimeout(120)
        link.raw.run("BEGIN")
        link.raw.run(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
        running = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.DEVNULL)
        waits = "SELECT FROM pg_locks WHERE NOT granted AND relation = CAST(:t AS text)::regclass"
        eventually(lambda: run_sql(url, waits, t=table), "it wants to write")
        running.send_signal(signal.SIGKILL)
        running.wait(60)
        link.raw.run("ROLLBACK")
    told = rebuild(cluster)
    assert told.code == 0, told.out + told.err
    cluster.start_service()
    assert {uuid: cluster.download(uuid) for uuid in files} == files


def test_up_gets_its_metadb_back_from_its_own_nodes(up: StartUp, data: Path) -> None:
    """As docs/disaster.md says it: stopped, made the cluster's, started, read."""
    running = up().wait_ready()
    contents = os.urandom(3 << 20)
    (data.parent / "file").write_bytes(contents)
    uuid = curl("--upload-file", str(data.parent / "file"), f"{running.url}/upload/").decode().strip()
    assert running.stop() == 0
    (data / "metadb").rename(data / "metadb.lost")
    refused = up()
    assert refused.wait() != 0
    assert "`distfs metadb rebuild --from-nodes`" in refused.log

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "distfs", *REBUILD]
        environ = clean_environment(DISTFS_LOCAL_DATA=str(data))
        return nursery.run(command, data.parent, environ, PATIENCE_S)

    first = run()
    assert first.returncode == 1
    assert "no storage node has said that it lives: start them (`distfs up`" in first.stderr
    running = up().wait_ready()
    told = run()
    assert told.returncode == 0, told.stdout + told.stderr
    assert "1 file of " in told.stdout
    assert curl(f"{running.url}/download/{uuid}") == contents
    assert running.stop() == 0
