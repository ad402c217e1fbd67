"""MetaDB backed up and restored: into another PostgreSQL, an embedded one; and nothing where that would be wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distfs.commands.backup import _for_libpq
from distfs.metadb.embedded_postgres import EmbeddedPostgres, binary, processes_in
from distfs.metadb.url import MetaURL
from tests import nursery
from tests.cluster import Cluster, MakeCluster
from tests.cluster.harness import PATIENCE_S, ROOT, clean_environment
from tests.cluster.operating import QUICK, distfs, fill
from tests.postgres import database_url, run_sql, scratch_folder


@pytest.fixture
def other(copy_of_postgres: Callable[[Path], EmbeddedPostgres]) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that has never heard of distfs."""
    with scratch_folder() as folder:
        server = copy_of_postgres(Path(folder) / "metadb")
        server.start()
        run_sql(server.url, "CREATE DATABASE elsewhere")
        yield server
        server.stop()


def rows(url: str) -> list[list[object]]:
    return run_sql(url, "SELECT id, name, sha256 FROM file ORDER BY id")


def move(cluster: Cluster, url: str) -> None:
    """Stop every part, and start it again on another MetaDB."""
    cluster.stop_service()
    for i in range(len(cluster.nodes)):
        cluster.stop_node(i)
    cluster.use_metadb(url)
    for node in cluster.nodes:
        node.start()
    cluster.start_service()


def test_a_cluster_moves_to_another_postgresql(
    make_cluster: MakeCluster, other: EmbeddedPostgres, tmp_path: Path
) -> None:
    cluster = make_cluster(config=QUICK)
    files = fill(cluster)
    file = tmp_path / "metadb.sql"
    told = distfs(cluster, "backup", str(file))
    assert told.code == 0, told.err
    assert str(file) in told.out
    assert file.stat().st_mode & 0o077 == 0, "what MetaDB keeps is nobody else's"
    url = database_url(other, "elsewhere")
    told = distfs(cluster, "restore", str(file), "--metadb", url)
    assert told.code == 0, told.err
    assert rows(url) == rows(cluster.metadb_url)
    noted = "SELECT count(*) FROM worker WHERE name = 'backup'"
    assert [run_sql(each, noted) for each in (cluster.metadb_url, url)] == [[[1]], [[0]]], "once it was done"
    move(cluster, url)
    assert {uuid: cluster.download(uuid) for uuid in files} == files
    assert distfs(cluster, "fsck").code == 0
    uuid = cluster.upload(b"one more")
    assert cluster.download(uuid) == b"one more"


def test_psql_alone_restores_a_backup(
    make_cluster: MakeCluster, other: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Where somebody else looks after PostgreSQL: without distfs, and without one error."""
    cluster = make_cluster(config=QUICK)
    fill(cluster)
    run_sql(cluster.metadb_url, "CREATE ROLE looks_on")
    run_sql(cluster.metadb_url, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO looks_on")
    file, url = tmp_path / "metadb.sql", database_url(other, "elsewhere")
    assert distfs(cluster, "backup", str(file)).code == 0
    done = subprocess.run(
        [binary("psql"), "--no-psqlrc", "--quiet", "--file", str(file)],
        env=dict(_for_libpq(MetaURL.parse(url))),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert rows(url) == rows(cluster.metadb_url)


def test_an_embedded_metadb_is_restored_though_none_runs(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(config=QUICK)
    fill(cluster)
    file, folder = tmp_path / "metadb.sql", tmp_path / "new" / "metadb"
    assert distfs(cluster, "backup", str(file)).code == 0
    told = distfs(cluster, "restore", str(file), "--metadb", f"embedded:{folder}")
    assert told.code == 0, told.err
    again = tmp_path / "again.sql"
    told = distfs(cluster, "backup", str(again), "--metadb", f"embedded:{folder}")
    assert told.code == 0, told.err
    assert all(str(row[0]) in again.read_text() for row in rows(cluster.metadb_url))
    assert list(processes_in(folder / "postgres")) == [], "none is left running"


def test_what_is_not_empty_is_not_restored_into(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(config=QUICK)
    fill(cluster)
    before = rows(cluster.metadb_url)
    file = tmp_path / "metadb.sql"
    assert distfs(cluster, "backup", str(file)).code == 0
    told = distfs(cluster, "restore", str(file))
    assert told.code == 1
    assert "not empty" in told.err
    assert rows(cluster.metadb_url) == before


def test_a_backup_that_is_cut_short_restores_nothing(
    make_cluster: MakeCluster, make_database: Callable[[str], str], tmp_path: Path
) -> None:
    cluster = make_cluster(config=QUICK)
    fill(cluster)
    file, url = tmp_path / "metadb.sql", make_database("template1")
    assert distfs(cluster, "backup", str(file)).code == 0
    whole = file.read_text()
    file.write_text(whole[: len(whole) * 2 // 3])
    told = distfs(cluster, "restore", str(file), "--metadb", url)
    assert told.code == 1, told.out
    assert run_sql(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [[0]]


def test_a_backup_that_cannot_be_written_leaves_the_one_of_before(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_cluster(config=QUICK)
    file = tmp_path / "metadb.sql"
    assert distfs(cluster, "backup", str(file)).code == 0
    before = file.read_bytes()
    (tmp_path / "metadb.sql.partial").mkdir()
    told = distfs(cluster, "backup", str(file))
    assert told.code == 1
    assert "cannot write" in told.err
    assert file.read_bytes() == before


def test_a_pipe_or_device_is_written_to_and_not_replaced(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(config=QUICK)
    (tmp_path / "link").symlink_to("/dev/full")
    told = distfs(cluster, "backup", str(tmp_path / "link"))
    assert told.code == 1
    assert "No space left" in told.err
    assert (tmp_path / "link").is_symlink()
    assert Path("/dev/full").is_char_device()
    for name in ("-", "/dev/stdout"):
        told = distfs(cluster, "backup", name)
        assert told.code == 0, told.err
        assert "PostgreSQL database dump complete" in told.out
        assert "MetaDB is in" not in told.out
    appended = tmp_path / "appended.sql"
    appended.write_text("-- what was there\n")
    command = [sys.executable, "-m", "distfs", "backup", "-", "--config", str(cluster.folder / "config.yml")]
    with appended.open("a") as out:
        done = nursery.run(command, ROOT, clean_environment(), PATIENCE_S, out.fileno())
    assert done.returncode == 0, done.stderr
    assert appended.read_text().startswith("-- what was there\nDO $$")
    (tmp_path / "real.sql").touch()
    (tmp_path / "named").symlink_to("real.sql")
    assert distfs(cluster, "backup", str(tmp_path / "named")).code == 0
    assert (tmp_path / "named").is_symlink()
    assert "PostgreSQL database dump complete" in (tmp_path / "real.sql").read_text()


def test_what_is_not_there_is_not_backed_up(tmp_path: Path) -> None:
    """Nor made, so that its backup would be of nothing."""
    folder, file = tmp_path / "metadb", tmp_path / "backup.sql"
    command = [sys.executable, "-m", "distfs", "backup", str(file), "--metadb", f"embedded:{folder}"]
    ended = nursery.run(command, ROOT, clean_environment(), PATIENCE_S)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"distfs: there is no MetaDB in {folder}: name the one you mean with --metadb\n"
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_no_metadb_is_not_backed_up(other: EmbeddedPostgres, tmp_path: Path) -> None:
    file = tmp_path / "backup.sql"
    command = [
        sys.executable,
        "-m",
        "distfs",
        "backup",
        str(file),
        "--metadb",
        database_url(other, "elsewhere"),
    ]
    ended = nursery.run(command, ROOT, clean_environment(), PATIENCE_S)
    assert ended.returncode == 1
    assert " is empty: name the one you mean with --metadb" in ended.stderr
    assert list(tmp_path.iterdir()) == []
