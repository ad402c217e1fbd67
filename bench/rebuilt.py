"""How quickly a lost MetaDB is made anew from the nodes: fragments read and files written, a second."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from io import BytesIO
from uuid import UUID

from bench.parts import Parts
from bench.report import GoalMissed, Options, table
from bench.targets import workspace
from distfs.config.settings import Config, MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.meta import MetaDB
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.model import Policy
from distfs.peers.directory import NodeDirectory
from distfs.recovery.db import RecoveryDB
from distfs.recovery.rebuild import scan, write_files
from distfs.services import build

FILES, SIZE, AT_ONCE = 4000, 4096, 8
_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Of small files, two copies each."""

    fragments: int
    files: int
    read_s: float  # until all fragments were read
    write_s: float  # until all files were written, after that
    load: float  # processes that wanted to run meanwhile, of the last minute


def run(options: Options, cleanup: ExitStack) -> Rebuilt:
    """Raises GoalMissed when a file is not there again."""
    folder = cleanup.enter_context(workspace(options.work))
    parts = cleanup.enter_context(Parts.running(folder / "cluster", mutual=False))
    metadb = MetaDBConfig(url=parts.metadb, statement_timeout=Seconds(120))
    config = replace(Config(), metadb=metadb)
    with closing(MetaDB(metadb)) as meta:
        cluster = meta.cluster_id(Deadline(_LIMIT_S))
    _fill(config)
    _erase(parts.metadb)
    with closing(MetaDB(metadb)) as meta:
        found = measure(meta, config, cluster)
    figures = (
        f"{found.fragments / found.read_s:,.0f} fragments/s",
        f"{found.files / found.write_s:,.0f} files/s",
    )
    counts = f"{found.files:,}", f"{found.fragments:,}"
    table([["files", "fragments", "read", "written", "load"], [*counts, *figures, f"{found.load:.1f}"]])
    if found.files != FILES:
        raise GoalMissed(f"{found.files} of {FILES} files are there again", found)
    return found


def measure(meta: MetaDB, config: Config, cluster: UUID) -> Rebuilt:
    """An empty MetaDB, and nodes that run."""
    meta.migrate(cluster=cluster)
    db, deadline = RecoveryDB(meta), Deadline(_LIMIT_S)
    db.begin(deadline)
    while len(nodes := [node for node in meta.nodes(deadline) if node.alive]) < 3:
        deadline.remaining("waiting for the nodes")
        time.sleep(0.1)
    with closing(NodeDirectory(meta, config.peers)) as directory:
        began = time.perf_counter()
        scanned = scan(db, directory, cluster, nodes, bool)
        read = time.perf_counter()
        made = write_files(db, directory, lambda *_: None, bool, dry=False)
        written = time.perf_counter()
    return Rebuilt(scanned.fragments, made.files, read - began, written - read, os.getloadavg()[0])


def _fill(config: Config) -> None:
    services = build(config)

    def upload(number: int) -> None:
        with services.uploader.begin(Deadline(_LIMIT_S), most=SIZE) as session:
            source = BytesIO(os.urandom(SIZE))
            session.add(source, name=f"{number}.bin", content_type="text/plain", policy=Policy(1, 1))
            session.commit()

    with closing(services), ThreadPoolExecutor(AT_ONCE) as executor:
        list(executor.map(upload, range(FILES)))


def _erase(url: str) -> None:
    parsed = MetaURL.parse(url)
    with closing(Link(parsed, parsed.hosts[0], Deadline(_LIMIT_S), statement_timeout=0)) as link:
        link.raw._usock.settimeout(None)
        link.raw.run("DROP SCHEMA public CASCADE")
        link.raw.run("CREATE SCHEMA public")
