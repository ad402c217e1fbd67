"""Fixtures: a real PostgreSQL. One server for the whole run; each test gets a database of its own.

A test's database is cloned from one that was migrated once. The servers here do without fsync: what a
test kills are processes, not the machine.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from tests.greetings import KEYS

FAST = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB"}

#: Bytes a memory file system must have free to hold the test servers: databases are cloned ten times faster
#: there, where creating 300 small files costs nothing.
_MEMORY_NEEDED = 1 << 30

_numbers = itertools.count(1)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Where a test server keeps its data: in memory where there is room."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _MEMORY_NEEDED
    return tempfile.TemporaryDirectory(prefix="distfs-test-", dir=memory if roomy else None)


def database_url(server: EmbeddedPostgres, database: str, user: str = "distfs") -> str:
    """The URL of one database of a server."""
    return server.url.replace("//distfs@/postgres?", f"//{user}@/{database}?")


def run_sql(url: str, sql: str, **params: Any) -> list[list[Any]]:
    """Run SQL on a connection of its own; -> rows."""
    parsed = MetaURL.parse(url)
    link = Link(parsed, parsed.hosts[0], Deadline(10), statement_timeout=120)
    try:
        link.raw._usock.settimeout(120)  # it is the connection's own limit until now
        rows: list[list[Any]] | None = link.raw.run(sql, **params)
        return rows or []
    finally:
        link.close()


@pytest.fixture(scope="session")
def pristine_postgres() -> Iterator[Path]:
    """A folder with a database nobody has used: copying it is several times faster than initdb."""
    with scratch_folder() as folder:
        server = EmbeddedPostgres(Path(folder) / "metadb", FAST)
        server.start()
        server.stop()
        yield server.folder


@pytest.fixture(scope="session")
def copy_of_postgres(pristine_postgres: Path) -> Callable[[Path], EmbeddedPostgres]:
    """-> a function: a new folder -> an EmbeddedPostgres over it, not started, with nothing in it yet."""

    def copy(folder: Path) -> EmbeddedPostgres:
        subprocess.run(["cp", "-a", str(pristine_postgres), str(folder)], check=True)
        return EmbeddedPostgres(folder, FAST)

    return copy


@pytest.fixture(scope="session")
def postgres(copy_of_postgres: Callable[[Path], EmbeddedPostgres]) -> Iterator[EmbeddedPostgres]:
    """The server all tests share: not to be stopped or killed."""
    with scratch_folder() as folder:
        server = copy_of_postgres(Path(folder) / "metadb")
        server.start()
        try:
            run_sql(server.url, "CREATE DATABASE migrated")
            meta = MetaDB(MetaDBConfig(url=database_url(server, "migrated")))
            meta.migrate()
            meta.close()
            use_known_key(database_url(server, "migrated"))
            yield server
        finally:
            server.stop()


def use_known_key(url: str) -> None:
    """Nodes that a test makes in its own process know it without asking."""
    run_sql(url, "UPDATE cluster_key SET key = :key", key=KEYS[0].secret)


@contextmanager
def databases(server: EmbeddedPostgres) -> Iterator[Callable[[str], str]]:
    """-> a function: template ("migrated", or "template1" for an empty one) -> the URL of a new database.

    They are dropped in the end.
    """
    names = []

    def make(template: str) -> str:
        names.append(f"test_{next(_numbers)}")
        run_sql(server.url, f"CREATE DATABASE {names[-1]} TEMPLATE {template} STRATEGY FILE_COPY")
        return database_url(server, names[-1])

    yield make
    for name in names:
        run_sql(server.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def make_database(postgres: EmbeddedPostgres) -> Iterator[Callable[[str], str]]:
    """``databases`` on the server all tests share."""
    with databases(postgres) as make:
        yield make


@pytest.fixture
def metadb_url(make_database: Callable[[str], str]) -> str:
    """The URL of a migrated MetaDB without files or nodes, for this test alone."""
    return make_database("migrated")


@pytest.fixture
def meta(metadb_url: str) -> Iterator[MetaDB]:
    """A MetaDB over ``metadb_url``."""
    meta = MetaDB(MetaDBConfig(url=metadb_url))
    yield meta
    meta.close()


@pytest.fixture
def own_postgres(copy_of_postgres: Callable[[Path], EmbeddedPostgres]) -> Iterator[EmbeddedPostgres]:
    """A running, migrated server for one test that stops, freezes or kills it."""
    with scratch_folder() as folder:
        server = copy_of_postgres(Path(folder) / "metadb")
        server.start()
        try:
            meta = MetaDB(MetaDBConfig(url=server.url))
            meta.migrate()
            meta.close()
            use_known_key(server.url)
            yield server
        finally:
            server.stop()
