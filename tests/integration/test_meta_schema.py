"""MetaDB's schema: migrations and schema.sql agree, migrating is safe at any time, rights are as promised."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import ConfigError, Unavailable
from distfs.meta import MetaDB
from distfs.metadb import schema as meta_schema
from distfs.metadb.embedded_postgres import EmbeddedPostgres, binary
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.upkeep.db import UpkeepDB
from tests.contract.litter import eventually
from tests.integration.meta_examples import commit_as_before, placed, register, soon
from tests.postgres import database_url, run_sql, scratch_folder


def dump(url: str) -> list[str]:
    """A database's schema with its grants, as pg_dump tells it."""
    parsed = MetaURL.parse(url)
    command = [str(binary("pg_dump")), "--schema-only", "-h", parsed.hosts[0].name, "-U", parsed.user]
    told = subprocess.run([*command, parsed.database], capture_output=True, text=True, check=True).stdout
    return [line for line in told.splitlines() if not line.startswith(("--", "\\"))]


def test_the_migrations_make_what_schema_sql_says(make_database: Callable[[str], str]) -> None:
    migrated, declared = make_database("template1"), make_database("template1")
    meta = MetaDB(MetaDBConfig(url=migrated))
    assert meta.migrate() == list(range(1, meta_schema.latest() + 1))
    meta.close()
    for part in ("schema.sql", "functions.sql", "cluster_keys.sql", "logs.sql", "roles.sql", "node_role.sql"):
        run_sql(declared, (meta_schema.sql_folder() / part).read_text("utf-8"))
    assert dump(migrated) == dump(declared)


def test_migrating_again_changes_nothing(meta: MetaDB, metadb_url: str) -> None:
    assert meta.migrate() == []  # it gives rights to roles that have come since
    before = dump(metadb_url)
    cluster = meta.cluster_id(Deadline(60))
    assert meta.migrate() == []
    assert dump(metadb_url) == before
    assert run_sql(metadb_url, "SELECT id FROM cluster") == [[cluster]]


def test_a_migration_may_read_a_table_from_end_to_end(make_database: Callable[[str], str]) -> None:
    url = make_database("template1")
    run_sql(url, "CREATE TABLE seen (seqscan text)")
    run_sql(
        url,
        "CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO seen VALUES (current_setting('enable_seqscan')); END $$",
    )
    run_sql(url, "CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION note()")
    meta = MetaDB(MetaDBConfig(url=url))
    assert meta.migrate()
    meta.close()
    assert run_sql(url, "SELECT DISTINCT seqscan FROM seen") == [["on"]]


def migrate_up_to(url: str, last: int) -> None:
    """As an earlier version of distfs left it."""
    run_sql(url, meta_schema._BOOKKEEPING)
    for step in meta_schema.migrations()[:last]:
        assert not step.one_by_one, "that would have to be run another way"
        run_sql(url, step.sql)
        note = "INSERT INTO migration (number, name, sha256) VALUES (:number, :name, :sha256)"
        run_sql(url, note, number=step.number, name=step.name, sha256=step.sha256)


def test_data_of_the_first_schema_survives_every_later_migration(make_database: Callable[[str], str]) -> None:
    url = make_database("template1")
    migrate_up_to(url, 1)
    cluster = run_sql(url, "SELECT id FROM cluster")
    run_sql(url, _OLD_DATA)
    meta = MetaDB(MetaDBConfig(url=url))
    assert meta.migrate() == list(range(2, meta_schema.latest() + 1))
    meta.ping(Deadline(60))
    [node] = meta.nodes(Deadline(60))
    assert (node.id, node.address.port, node.free, node.used, node.alive) == (1, 9001, 5, 4, True)
    assert [[meta.cluster_id(Deadline(60))]] == cluster
    live, deleted = UUID(int=1), UUID(int=2)
    assert meta.file(live, Deadline(60)).slices[0].nodes == (1, 2)
    meta.undelete_file(deleted, Deadline(60))
    assert meta.file(deleted, Deadline(60)).name == "b"
    assert len(UpkeepDB(meta).work_to_repair(60, 10, Deadline(60))) == 0
    meta.close()


_OLD_DATA = """
INSERT INTO node (uuid, address, zone, capacity, used, free, state)
    VALUES (gen_random_uuid(), 'localhost:9001', '', 10, 4, 5, 'active');
INSERT INTO file (id, name, content_type, size, sha256, k, m, block_size)
    VALUES ('00000000-0000-0000-0000-000000000001', 'a', 'text/plain', 3, sha256('a'), 1, 1, 4096);
INSERT INTO slice (id, file_id, ordinal, size, digest, nodes)
    VALUES (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 0, 3, 'digest', '{1,2}');
INSERT INTO trash (id, name, content_type, size, sha256, k, m, block_size, created_at)
    VALUES ('00000000-0000-0000-0000-000000000002', 'b', 'text/plain', 3, sha256('b'), 1, 1, 4096, now());
INSERT INTO trash_slice (id, file_id, ordinal, size, digest, nodes)
    VALUES (gen_random_uuid(), '00000000-0000-0000-0000-000000000002', 0, 3, 'digest', '{2,1}');
"""


def test_of_several_that_migrate_at_once_one_does_it(make_database: Callable[[str], str]) -> None:
    url = make_database("template1")
    metas = [MetaDB(MetaDBConfig(url=url)) for _ in range(4)]
    applied: list[list[int]] = []
    threads = [threading.Thread(target=lambda m=m: applied.append(m.migrate())) for m in metas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [[], [], [], list(range(1, meta_schema.latest() + 1))]


def migrating_to(url: str, folder: Path) -> subprocess.Popen[bytes]:
    """`distfs migrate` in a folder without a ./data of another cluster."""
    environment = os.environ | {"DISTFS_METADB_URL": url}
    return subprocess.Popen([sys.executable, "-m", "distfs", "migrate"], cwd=folder, env=environment)


def test_an_index_is_made_beside_uploads_and_anew_after_a_kill(
    make_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As long as a backup may read: that is what the index waits for here, and what is half made, to be dropped."""
    url = make_database("template1")
    beside = next(step for step in meta_schema.migrations() if "CREATE INDEX CONCURRENTLY" in step.sql)
    migrate_up_to(url, beside.number - 1)
    meta, parsed = MetaDB(MetaDBConfig(url=url)), MetaURL.parse(url)
    register(meta, 2)
    files = [placed((1, 2)) for _ in range(4)]
    commit_as_before(url, files[0])
    made = "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"
    with (
        ThreadPoolExecutor(1) as threads,
        closing(Link(parsed, parsed.hosts[0], soon(), statement_timeout=600)) as backup,
    ):
        backup.raw.run("BEGIN ISOLATION LEVEL REPEATABLE READ")
        backup.raw.run("SELECT FROM slice")
        migrating = migrating_to(url, tmp_path)
        eventually(
            lambda: run_sql(url, made, name="slice_places") == [["slice_places", False]], "it is begun"
        )
        commit_as_before(url, files[1])
        migrating.kill()
        migrating.wait()
        building = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CREATE INDEX%'"
        assert run_sql(url, f"SELECT pg_terminate_backend(pid) {building}") == [[True]]
        eventually(lambda: run_sql(url, f"SELECT {building}") == [], "its connection is gone")
        assert run_sql(url, made, name="slice_places") == [["slice_places", False]], "half made"
        monkeypatch.setattr(meta_schema, "_LOCK_WAIT_S", 1)
        again = threads.submit(meta.migrate)
        waits = (
            "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
            "AND query LIKE '%DROP INDEX%' AND query_start < clock_timestamp() - interval '3 s'"
        )
        eventually(
            lambda: again.done() or run_sql(url, f"SELECT {waits}"),
            "it waits for longer than for other locks",
        )
        assert not again.done(), again.exception()
        commit_as_before(url, files[2])
        backup.raw.run("ROLLBACK")
    assert again.result() == list(range(beside.number, meta_schema.latest() + 1))
    meta.commit_files(files[3:], soon())
    assert run_sql(url, "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid") == []
    assert run_sql(url, made, name="slice_places") == [["slice_places", True]]
    kept = {each.id.slice for each in UpkeepDB(meta).fragments_on(1, None, 10, soon())}
    assert kept == {file.slices[0].id for file in files}
    meta.close()


def test_a_migration_changed_after_it_was_applied_is_refused(meta: MetaDB, metadb_url: str) -> None:
    run_sql(metadb_url, "UPDATE migration SET sha256 = 'other' WHERE number = 1")
    with pytest.raises(ConfigError, match="0001 files_and_nodes was changed"):
        meta.migrate()


def test_a_server_that_is_too_old_is_refused_before_anything_is_done() -> None:
    class Old:
        """A connection to PostgreSQL 13, of which there is none here."""

        def run(self, sql: str, **_: object) -> list[list[object]]:
            assert "server_version" in sql, f"{sql} was run on it"
            return [[130014, "13.14 (Debian 13.14-1)"]]

    with pytest.raises(ConfigError) as caught:
        meta_schema.apply_migrations(Old())
    assert str(caught.value) == (
        "MetaDB is PostgreSQL 13.14 (Debian 13.14-1); distfs needs 14 or later: upgrade it, or name another server "
        "in metadb.url"
    )


def test_a_metadb_that_was_not_migrated_says_what_to_do(make_database: Callable[[str], str]) -> None:
    meta = MetaDB(MetaDBConfig(url=make_database("template1")))
    for call in (meta.ping, meta.cluster_id, meta.nodes):
        with pytest.raises(Unavailable, match="run `distfs migrate`"):
            call(Deadline(60))
    meta.migrate()
    meta.ping(Deadline(60))
    meta.close()


def test_a_metadb_that_is_behind_says_what_to_do(meta: MetaDB, metadb_url: str) -> None:
    run_sql(metadb_url, "DELETE FROM migration")
    with pytest.raises(Unavailable, match="at migration 0, .* run `distfs migrate`"):
        meta.ping(Deadline(60))


def test_without_the_right_to_create_roles_migrating_works_and_says_how_to_go_on(
    copy_of_postgres: Callable[[Path], EmbeddedPostgres], caplog: pytest.LogCaptureFixture
) -> None:
    with scratch_folder() as folder:
        server = copy_of_postgres(Path(folder) / "metadb")
        server.start()
        try:
            run_sql(server.url, "CREATE ROLE tenant LOGIN; GRANT ALL ON SCHEMA public TO tenant")
            meta = MetaDB(MetaDBConfig(url=database_url(server, "postgres", user="tenant")))
            assert meta.migrate() == list(range(1, meta_schema.latest() + 1))
            assert "have an administrator run CREATE ROLE distfs_node" in caplog.text
            run_sql(server.url, "CREATE ROLE distfs_node LOGIN")
            meta.migrate()
            meta.close()
            as_node = MetaDB(MetaDBConfig(url=database_url(server, "postgres", user="distfs_node")))
            assert run_sql(server.url, "SELECT id FROM cluster") == [[as_node.cluster_id(Deadline(60))]]
            as_node.close()
        finally:
            server.stop()


def test_the_trash_has_a_place_for_every_column_of_a_file_and_a_slice(metadb_url: str) -> None:
    def columns(table: str) -> set[str]:
        rows = run_sql(
            metadb_url, "SELECT column_name FROM information_schema.columns WHERE table_name = :t", t=table
        )
        return {name for [name] in rows}

    assert columns("trash") == columns("file") | {"deleted_at", "purge_at", "erase_at"}
    assert columns("trash_slice") == columns("slice")
