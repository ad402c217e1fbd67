"""Services of two releases on one MetaDB: a migration ahead is no matter, and MetaDB says how old one may be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from distfs import agreement
from distfs.agreement import Agreement
from distfs.config.settings import Config, MetaDBConfig
from distfs.errors import ConfigError, Outdated
from distfs.formats.features import Features
from distfs.meta import MetaDB
from distfs.metadb import schema
from distfs.metadb.schema import Migration, latest
from distfs.transfer.slice_plan import EXTENDED_SINCE, PACKED
from tests import nursery
from tests.cluster.harness import PATIENCE_S, clean_environment
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import UpkeepCluster, bytes_of
from tests.postgres import run_sql


def ahead(url: str, min_version: int = 0) -> None:
    """As the next release leaves MetaDB: with what this one does not know."""
    run_sql(url, "ALTER TABLE file ADD COLUMN tomorrow text")
    run_sql(url, "CREATE TABLE later (id uuid PRIMARY KEY)")
    run_sql(
        url,
        "INSERT INTO migration (number, name, sha256, min_version) VALUES (:n, 'later', '', :needs)",
        n=latest() + 1,
        needs=min_version,
    )


def of_before(url: str) -> None:
    """As a MetaDB that was upgraded to this release, and may have older services."""
    run_sql(url, "UPDATE migration SET min_version = 0")


def command(folder: Path, url: str, *words: str) -> tuple[int, str, str]:
    argv = [sys.executable, "-m", "distfs", *words, "--metadb", url]
    done = nursery.run(argv, folder, clean_environment(), PATIENCE_S)
    return done.returncode, done.stdout, done.stderr


def test_one_migration_ahead_of_a_service_it_works(tmp_path: Path, metadb_url: str) -> None:
    ahead(metadb_url)
    data = bytes_of(1)
    with UpkeepCluster(tmp_path, metadb_url, nodes=2) as cluster:
        assert cluster.meta.migrate() == [], "nor is it in the way of `distfs up`"
        cluster.meta.ping(soon())
        Agreement(cluster.meta, Config()).require(soon())
        file = cluster.upload(data)
        assert cluster.download(file) == data
    code, out, _ = command(tmp_path, metadb_url, "migrate", "--check")
    assert (code, "1 migration more, of a later release" in out) == (0, True)


def test_a_service_that_is_too_old_does_not_start(tmp_path: Path, meta: MetaDB, metadb_url: str) -> None:
    ahead(metadb_url, latest() + 1)
    words = f"MetaDB takes no service that knows fewer than {latest() + 1} migrations"
    with pytest.raises(ConfigError, match=words):
        meta.migrate()
    with pytest.raises(Outdated, match="upgrade distfs"):
        meta.ping(soon())
    code, out, err = command(tmp_path, metadb_url, "migrate", "--check")
    assert (code, out, words in err) == (1, "", True)
    code, _, err = command(tmp_path, metadb_url, "serve", "--port", "0")
    assert (code, words in err) == (2, True)


def test_a_service_that_became_too_old_does_not_go_on(
    meta: MetaDB, metadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "RECHECK_S", 0.0)
    ours = Agreement(meta, Config())
    ours.require(soon())
    ahead(metadb_url, latest() + 1)
    for _ in range(2):
        with pytest.raises(Outdated, match="upgrade distfs"):
            ours.require(soon())


def test_check_tells_what_would_be_done_and_does_nothing(
    tmp_path: Path, make_database: Callable[[str], str]
) -> None:
    url = make_database("template1")
    code, out, err = command(tmp_path, url, "migrate", "--check")
    assert (code, len(out.splitlines()), "run `distfs migrate`" in err) == (1, latest(), True)
    assert out.startswith("would apply 0001 files and nodes\n")
    assert run_sql(url, "SELECT to_regclass('migration') IS NULL") == [[True]]
    assert command(tmp_path, url, "migrate")[0] == 0
    assert command(tmp_path, url, "migrate", "--check")[:2] == (
        0,
        f"this release (migration {latest()}) runs with MetaDB\n",
    )


def test_older_services_may_run_until_it_is_finished(tmp_path: Path, metadb_url: str) -> None:
    of_before(metadb_url)
    with closing(MetaDB(MetaDBConfig(url=metadb_url))) as meta:
        assert meta.migrate() == []
        assert not meta.all_know(latest(), soon())
    words = "services of an older release may run"
    assert words in command(tmp_path, metadb_url, "doctor")[1]
    assert command(tmp_path, metadb_url, "migrate", "--finish")[0] == 0
    assert words not in command(tmp_path, metadb_url, "doctor")[1]
    with closing(MetaDB(MetaDBConfig(url=metadb_url))) as meta:
        assert meta.all_know(latest(), soon())
        assert not meta.all_know(latest() + 1, soon())


def test_a_new_metadb_was_never_an_older_ones(meta: MetaDB) -> None:
    assert meta.all_know(latest(), soon())


def test_only_the_newest_release_finishes(meta: MetaDB, metadb_url: str) -> None:
    of_before(metadb_url)
    ahead(metadb_url)
    with pytest.raises(ConfigError, match="finish with the newest release"):
        meta.finish()
    run_sql(metadb_url, "DELETE FROM migration WHERE number >= :n", n=latest())
    with pytest.raises(ConfigError, match="run `distfs migrate` first"):
        meta.finish()


def test_what_takes_something_away_says_who_may_still_run(
    meta: MetaDB, metadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Migration(latest() + 1, "away", f"-- min_version: {latest() + 1}\nCREATE TABLE instead ()")
    assert (step.min_version, max(each.min_version for each in schema.migrations())) == (latest() + 1, 0)
    steps = (*schema.migrations(), step)
    monkeypatch.setattr(schema, "migrations", lambda: steps)
    assert meta.migrate() == [step.number]
    monkeypatch.undo()
    with pytest.raises(Outdated):
        meta.ping(soon())


def test_what_an_older_service_cannot_read_is_not_written_while_one_may_run(
    tmp_path: Path, metadb_url: str
) -> None:
    of_before(metadb_url)
    data = b"a line that is there again and again\n" * 10_000
    with UpkeepCluster(tmp_path, metadb_url, nodes=2) as cluster:

        def features() -> set[Features]:
            file = cluster.upload(data)
            assert cluster.download(file) == data
            tables = [cluster.store(node).stat(id, soon()) for id, node in cluster.fragments(file)]
            return {table.extra.features for table in tables}

        assert features() == {Features()}, "of format version 1, for nodes of before too"
        cluster.meta.finish()
        cluster.meta._looked_at = float("-inf")  # it looks again after a while
        assert all(each.incompat == PACKED.features.incompat for each in features())
    assert latest() >= EXTENDED_SINCE
