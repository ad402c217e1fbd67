# ruff: noqa: S608 - of names that stand in the schema
"""``distfs metadb backup`` and ``restore``: all of a MetaDB, at one moment, without a program of PostgreSQL's; and
nothing at all where that would be wrong."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from distfs.access.db import TokenDB
from distfs.access.terms import read_terms
from distfs.config.settings import MetaDBConfig
from distfs.errors import Corrupt, Refused
from distfs.meta import MetaDB
from distfs.metadb import copies, schema
from distfs.metadb.copies import Header
from distfs.metadb.embedded_postgres import EmbeddedPostgres, processes_in
from distfs.model import Ownership
from distfs.storage.disk.home import enter, make_home
from tests import nursery
from tests.cluster.harness import PATIENCE_S, ROOT, clean_environment
from tests.cluster.test_kept_copies import held_up
from tests.contract.litter import eventually
from tests.integration.meta_examples import new_file, register, report, soon
from tests.postgres import run_sql

MakeDatabase = Callable[[str], str]


def opened(url: str) -> Any:
    return closing(MetaDB(MetaDBConfig(url=url)))


def fill(meta: MetaDB, url: str, files: int = 30) -> None:
    """Something in every table that is copied, with texts that want to be quoted."""
    register(meta, 3)
    TokenDB(meta).create(read_terms({"owner": "anna", "scopes": ["upload"], "quota": "1GB"}), soon())
    names = ["tab\there", "line\nbreak", "back\\slash", "\\N", "Grüße \N{SNOWMAN}", "'; DROP TABLE file; --"]
    made = [new_file((1000, 5), name=names[i % len(names)]) for i in range(files)]
    meta.commit_files(made, soon(), replace(Ownership(), owner="anna", quota=1 << 30))
    meta.commit_files([new_file(()), new_file((7,))], soon())
    meta.delete_file(made[0].id, soon())
    run_sql(
        url, "INSERT INTO damage (slice_id, index, node_id, reason) VALUES (gen_random_uuid(), 1, 2, 'x')"
    )
    run_sql(url, "INSERT INTO setting (name, seconds) VALUES ('a', 0.1), ('b', 1e-300)")
    run_sql(url, "INSERT INTO worker VALUES ('scrub', 'h', 1, 's', '{\"a\": [1, \"\\\\\"]}')")
    run_sql(url, "INSERT INTO link VALUES (gen_random_uuid(), 3, ARRAY[gen_random_uuid()], now())")


def contents(url: str) -> dict[str, Any]:
    """All rows of all tables, and where sequences are."""
    names = run_sql(
        url,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        " AND relpersistence = 'p' AND relname NOT LIKE 'log%' AND relname <> 'migration'",
    )
    found: dict[str, Any] = {
        name: run_sql(url, f"SELECT t::text FROM {name} t ORDER BY 1") for [name] in names
    }
    for [name] in run_sql(url, "SELECT relname::text FROM pg_class WHERE relkind = 'S'"):
        found[name] = run_sql(url, f"SELECT last_value, is_called FROM {name}")
    return found


def copied(meta: MetaDB) -> bytes:
    out = io.BytesIO()
    meta.copy_to(out.write)
    return out.getvalue()


def tables(url: str) -> int:
    [[count]] = run_sql(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    return int(count)


def test_all_of_a_metadb_is_in_its_copy(meta: MetaDB, metadb_url: str, make_database: MakeDatabase) -> None:
    fill(meta, metadb_url)
    before = contents(metadb_url)
    assert {name for name, rows in before.items() if not rows} <= {
        "forgetting",
        "forgotten_node",
        "node_scrub",
        "purged",
    }
    url = make_database("template1")
    with opened(url) as other:
        header, applied = other.load_copy(io.BytesIO(copied(meta)))
        assert (header.cluster, applied) == (meta.cluster_id(soon()), [])
        assert contents(url) == before
        assert other.heartbeat(report(port=9999), soon()) == 4, "ids are counted on"
        more = new_file((100,))
        other.commit_files([more], soon(), replace(Ownership(), owner="anna", quota=1 << 30))
    used = [run_sql(each, "SELECT bytes FROM owned")[0][0] for each in (metadb_url, url)]
    assert used[1] == used[0] + 100, "triggers are on again, and were off meanwhile"
    [[count]] = run_sql(url, "SELECT count(*) FROM file")
    assert count == len(before["file"]) + 1


def foreign(url: str) -> None:
    """What another application keeps in the same schema."""
    run_sql(url, "CREATE TABLE other (id integer GENERATED ALWAYS AS IDENTITY, said text)")
    run_sql(url, "INSERT INTO other (said) VALUES ('theirs')")
    run_sql(url, "CREATE SEQUENCE other_numbers")
    run_sql(url, "CREATE FUNCTION other_one() RETURNS integer LANGUAGE sql AS 'SELECT 1'")


def test_what_others_keep_beside_is_neither_copied_nor_in_the_way(
    meta: MetaDB, metadb_url: str, make_database: MakeDatabase
) -> None:
    fill(meta, metadb_url)
    before = contents(metadb_url)
    foreign(metadb_url)
    clean, shared = make_database("template1"), make_database("migrated")
    foreign(shared)
    copy = copied(meta)
    for url, anew in ((clean, False), (shared, True), (shared, False)):
        with opened(url) as other:
            if (url, anew) == (shared, False):
                run_sql(url, "TRUNCATE file, trash, token, slice, trash_slice, node CASCADE")
            other.load_copy(io.BytesIO(copy), anew=anew)
        after = contents(url)
        theirs = {name for name in after if name.startswith("other")}
        assert {name: rows for name, rows in after.items() if name not in theirs} == before
        assert len(theirs) == (3 if url == shared else 0)
    assert run_sql(shared, "SELECT said FROM other") == [["theirs"]]
    assert run_sql(shared, "SELECT other_one()") == [[1]]


def test_the_names_of_all_that_migrations_make_are_known(metadb_url: str) -> None:
    made = run_sql(
        metadb_url,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
        " AND relname NOT LIKE 'log_day%' UNION ALL SELECT proname::text FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace UNION ALL SELECT 'token_revision'",
    )
    assert {name for [name] in made} <= schema.names()


@pytest.mark.parametrize("finished", [False, True])
def test_what_may_run_with_a_restored_metadb_is_what_might_with_the_one_of_the_copy(
    make_database: MakeDatabase, finished: bool
) -> None:
    """In the middle of an upgrade services of before go on; after it they may not, and what is new is used."""
    old, url = make_database("template1"), make_database("template1")
    with opened(old) as meta:
        with meta._unhurried() as connection:
            schema.apply_migrations(connection, upto=schema.latest() - 1)
        meta.migrate()
        if finished:
            meta.finish()
        copy = copied(meta)
    with opened(url) as meta:
        header, _ = meta.load_copy(io.BytesIO(copy))
        assert header.min_version == schema.latest() * finished
        assert meta.all_know(schema.latest(), soon()) == finished
    needs = "SELECT max(min_version) FROM migration"
    assert run_sql(url, needs) == run_sql(old, needs) == [[schema.latest() * finished]]


def test_a_copy_is_of_one_moment(meta: MetaDB, metadb_url: str, make_database: MakeDatabase) -> None:
    """Files that come while it is written are in it with all their slices, or not at all."""
    register(meta, 2)
    stop = threading.Event()
    committed = threading.Event()

    def commit() -> None:
        with opened(metadb_url) as other:
            while not stop.is_set():
                other.commit_files([new_file((1, 2, 3))], soon())
                committed.set()

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        committed.wait(60)
        taken = [copied(meta) for _ in range(3)]
    finally:
        stop.set()
        thread.join()
    for copy in taken:
        url = make_database("template1")
        with opened(url) as other:
            other.load_copy(io.BytesIO(copy))
        [[files, slices]] = run_sql(url, "SELECT (SELECT count(*) FROM file), (SELECT count(*) FROM slice)")
        assert files > 0
        assert slices == 3 * files


def test_a_copy_of_an_older_schema_is_migrated_on(make_database: MakeDatabase) -> None:
    old, url = make_database("template1"), make_database("template1")
    older = schema.latest() - 3
    with opened(old) as meta:
        with meta._unhurried() as connection:
            schema.apply_migrations(connection, upto=older)
        copy = copied(meta)
    with opened(url) as meta:
        header, applied = meta.load_copy(io.BytesIO(copy))
        assert header.schema == older
        assert applied == list(range(older + 1, schema.latest() + 1))
        assert meta.cluster_id(soon()) == header.cluster
        meta.ping(soon())


def test_what_is_in_use_or_not_fitting_is_left_as_it_is(
    meta: MetaDB, metadb_url: str, make_database: MakeDatabase
) -> None:
    fill(meta, metadb_url)
    copy, before = copied(meta), contents(metadb_url)
    with pytest.raises(Refused, match="is not empty, it has rows in file: name a new database"):
        meta.load_copy(io.BytesIO(copy))
    assert contents(metadb_url) == before
    url = make_database("template1")
    header = Header.read(io.BytesIO(copy))
    with opened(url) as other:
        for wrong, words in (
            (replace(header, schema=header.schema + 1), "upgrade distfs"),
            (replace(header, format=2), "upgrade distfs"),
        ):
            fresh = wrong.pack() + copy[len(header.pack()) :]
            with pytest.raises(Refused, match=words):
                other.load_copy(io.BytesIO(fresh))
        assert tables(url) == 0
    migrated = make_database("migrated")
    with opened(migrated) as other, meta._unhurried():
        old = replace(header, schema=header.schema - 1)
        stream = io.BytesIO()
        monkey = copies._Writer(stream.write)
        monkey.begin(old)
        monkey.record(b"E", b"{}")
        monkey.end()
        with pytest.raises(Refused, match="is of .*: name a new database"):
            other.load_copy(stream)


@pytest.mark.parametrize("kind", ["cut", "changed", "longer", "other"])
def test_no_copy_that_is_not_whole_changes_anything(
    meta: MetaDB, metadb_url: str, make_database: MakeDatabase, kind: str
) -> None:
    fill(meta, metadb_url, files=3)
    copy, url = copied(meta), make_database("template1")
    wrong = {
        "cut": [copy[:at] for at in (0, 1, 12, 100, len(copy) // 2, len(copy) - 1)],
        "changed": [
            copy[:at] + bytes([copy[at] ^ 1]) + copy[at + 1 :]
            for at in (0, 9, 40, 200, len(copy) // 2, len(copy) - 40, len(copy) - 1)
        ],
        "longer": [copy + b"x"],
        "other": [b"x" * 5000, b"-- PostgreSQL database dump\n" * 100],
    }[kind]
    with opened(url) as other:
        for each in wrong:
            with pytest.raises((Corrupt, Refused)):
                other.load_copy(io.BytesIO(each))
        assert tables(url) == 0
        other.load_copy(io.BytesIO(copy))


@pytest.mark.parametrize(
    "records",
    [
        [(b"T", b'{"table": "file; DROP TABLE slice", "columns": []}')],
        [(b"T", b'{"table": "file", "columns": ["id) FROM STDIN; DROP TABLE slice; --"]}')],
        [(b"T", b"[]")],
        [(b"T", b"{")],
        [(b"X", b"")],
        [(b"S", b'{"pg_class": [1, true]}'), (b"E", b"{}")],
        [(b"E", b'{"file": 1}')],
        [(b"E", b"{}")],
        [(b"T", b'{"table": "cluster", "columns": ["id"]}'), (b"D", b"no uuid\n"), (b"E", b"{}")],
        [],
    ],
)
def test_a_whole_copy_of_nonsense_loads_nothing(
    meta: MetaDB, make_database: MakeDatabase, records: list[tuple[bytes, bytes]]
) -> None:
    header = Header.read(io.BytesIO(copied(meta)))
    out = io.BytesIO()
    writer = copies._Writer(out.write)
    writer.begin(header)
    for record in records:
        writer.record(*record)
    writer.end()
    url = make_database("migrated")
    before = contents(url)
    with opened(url) as other, pytest.raises(Exception, match=".") as caught:
        other.load_copy(out)
    assert type(caught.value).__module__ == "distfs.errors"
    assert contents(url) == before


# --- the commands -------------------------------------------------------------------------------------------


def run(folder: Path, *words: str, **environ: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "distfs", "metadb", *words]
    done = nursery.run(command, folder, clean_environment(**environ), PATIENCE_S)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def test_a_copy_goes_into_an_embedded_metadb_and_back(meta: MetaDB, metadb_url: str, tmp_path: Path) -> None:
    fill(meta, metadb_url)
    before = contents(metadb_url)
    code, out, err = run(tmp_path, "backup", "one.copy", "--metadb", metadb_url)
    assert code == 0, err
    assert "a copy of MetaDB is in one.copy" in out
    assert (tmp_path / "one.copy").stat().st_mode & 0o777 == 0o600
    assert run_sql(metadb_url, "SELECT count(*) FROM worker WHERE name = 'backup'") == [[1]], "noted"
    folder = tmp_path / "new" / "metadb"
    code, out, err = run(tmp_path, "restore", "one.copy", "--metadb", f"embedded:{folder}")
    assert code == 0, err
    assert list(processes_in(folder / "postgres")) == [], "none is left running"
    code, out, err = run(tmp_path, "restore", "one.copy", "--metadb", f"embedded:{folder}")
    assert code == 1
    assert "is not empty" in err
    assert run(tmp_path, "backup", "--metadb", f"embedded:{folder}")[0] == 0
    assert len(list(tmp_path.glob("metadb-*.copy"))) == 1
    server = EmbeddedPostgres(folder)
    server.start()
    try:
        after = contents(server.url)
    finally:
        server.stop()
    after["worker"] = before["worker"]  # "backup" was noted after the copy
    assert after == before


def test_what_is_not_there_has_no_copy_and_what_is_no_copy_no_metadb(tmp_path: Path, metadb_url: str) -> None:
    folder = tmp_path / "metadb"
    code, _, err = run(tmp_path, "backup", "x", "--metadb", f"embedded:{folder}")
    assert (code, err) == (
        1,
        f"distfs: there is no MetaDB in {folder}: name the one you mean with --metadb\n",
    )
    code, _, err = run(tmp_path, "restore", "x", "--metadb", f"embedded:{folder}")
    assert (code, "cannot read x" in err) == (1, True)
    (tmp_path / "x").write_bytes(b"nothing")
    code, _, err = run(tmp_path, "restore", "x", "--metadb", f"embedded:{folder}")
    assert (code, "it is no copy of a MetaDB" in err) == (1, True)
    assert not folder.exists()
    code, _, err = run(tmp_path, "backup", "no/such/folder", "--metadb", metadb_url)
    assert (code, "cannot write" in err) == (1, True)
    code, _, err = run(tmp_path, "backup", "/dev/full", "--metadb", metadb_url)
    assert (code, "No space left" in err) == (1, True)
    command = [sys.executable, "-m", "distfs", "metadb", "backup", "-", "--metadb", metadb_url]
    piped = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, check=True)
    assert copies.check(io.BytesIO(piped.stdout)).schema == schema.latest()


@pytest.mark.parametrize("words", [("metadb", "backup"), ("backup",)], ids="_".join)
def test_standard_output_that_takes_no_more_is_told_as_such(
    meta: MetaDB, metadb_url: str, tmp_path: Path, words: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "distfs", *words, "-", "--metadb", metadb_url]
    with open("/dev/full", "wb") as full:
        done = nursery.run(command, tmp_path, clean_environment(), PATIENCE_S, full.fileno())
    assert (done.returncode, "standard output: No space left" in done.stderr) == (4, True), done.stderr


@pytest.mark.parametrize(
    ("words", "said"), [((), "restore what?"), (("x", "--from-nodes"), "either FILE or --from-nodes")]
)
def test_flags_that_do_not_fit_are_told_as_such(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    code, _, err = run(tmp_path, "restore", *words)
    assert (code, said in err) == (2, True), err


def test_who_takes_the_one_kind_of_backup_for_the_other_is_told_so(
    meta: MetaDB, metadb_url: str, tmp_path: Path
) -> None:
    (tmp_path / "m.copy").write_bytes(copied(meta))
    command = [sys.executable, "-m", "distfs", "restore", "m.copy", "--metadb", metadb_url]
    done = nursery.run(command, tmp_path, clean_environment(), PATIENCE_S)
    assert (done.returncode, "`distfs metadb restore m.copy`" in done.stderr) == (1, True), done.stderr
    (tmp_path / "m.sql").write_text("DO $$ BEGIN\nEND $$;\n--\n-- PostgreSQL database dump complete\n--\n")
    code, _, err = run(tmp_path, "restore", "m.sql", "--metadb", metadb_url)
    assert (code, "`distfs restore m.sql`" in err) == (1, True), err


def test_a_copy_of_another_cluster_is_refused_beside_its_nodes(
    meta: MetaDB, metadb_url: str, tmp_path: Path
) -> None:
    assert run(tmp_path, "backup", "one.copy", "--metadb", metadb_url)[0] == 0
    (tmp_path / "data" / "node1").mkdir(parents=True)
    make_home(tmp_path / "data" / "node1")
    enter(tmp_path / "data" / "node1", uuid4())
    code, _, err = run(tmp_path, "restore", "one.copy", DISTFS_METADB_URL=f"embedded:{tmp_path}/data/metadb")
    assert (code, "name the MetaDB that you mean with --metadb" in err) == (2, True)
    (tmp_path / "other.yml").write_text(f"metadb: {{url: 'embedded:{tmp_path}/data/metadb'}}\n")
    code, _, err = run(tmp_path, "restore", "one.copy", "--config", "other.yml")
    assert (code, "name the MetaDB that you mean with --metadb" in err) == (2, True), "its nodes are the same"
    assert not (tmp_path / "data" / "metadb").exists()


def test_a_backup_that_is_killed_leaves_the_one_of_before(
    meta: MetaDB, metadb_url: str, tmp_path: Path
) -> None:
    """In its middle: a table of it is locked, so that it waits there."""
    fill(meta, metadb_url, files=3)
    file = tmp_path / "one.copy"
    file.write_bytes(b"of before")
    command = [sys.executable, "-m", "distfs", "metadb", "backup", str(file), "--metadb", metadb_url]
    with meta._unhurried() as connection:
        connection.run("BEGIN")
        connection.run("LOCK TABLE slice IN ACCESS EXCLUSIVE MODE")
        running = subprocess.Popen(command, cwd=ROOT, env=clean_environment())
        eventually(lambda: waits_for(metadb_url, "slice"), "it waits for slice")
        running.send_signal(signal.SIGKILL)
        running.wait(60)
        connection.run("ROLLBACK")
    assert file.read_bytes() == b"of before"
    assert run(tmp_path, "backup", str(file), "--metadb", metadb_url)[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["one.copy"]


def test_a_restore_that_is_killed_is_done_again(
    meta: MetaDB, metadb_url: str, make_database: MakeDatabase, tmp_path: Path
) -> None:
    fill(meta, metadb_url, files=3)
    before = contents(metadb_url)
    url = make_database("migrated")
    file = tmp_path / "one.copy"
    file.write_bytes(copied(meta))
    empty = contents(url)
    command = [sys.executable, "-m", "distfs", "metadb", "restore", str(file), "--metadb", url]
    with held_up(url, "%ENABLE TRIGGER%"):  # its rows are loaded then
        running = subprocess.Popen(command, cwd=ROOT, env=clean_environment())
        waits = "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = 4242"
        eventually(lambda: run_sql(url, waits), "it waits at the gate")
        running.send_signal(signal.SIGKILL)
        running.wait(60)
    eventually(
        lambda: not run_sql(url, "SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock'"), "it is undone"
    )
    sequences = {
        name: empty[name] for name in ("node_id_seq", "token_revision")
    }  # no transaction takes these back
    assert contents(url) | sequences == empty
    code, _, err = run(tmp_path, "restore", str(file), "--metadb", url)
    assert code == 0, err
    assert contents(url) == before


def waits_for(url: str, table: str) -> bool:
    found = run_sql(
        url,
        "SELECT FROM pg_locks WHERE NOT granted AND relation = CAST(:table AS text)::regclass",
        table=table,
    )
    return bool(found)
