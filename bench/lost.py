"""What it costs repair to find what it is to do when a large node is gone: MetaDB alone, filled by SQL, no bytes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import UUID

from bench.report import GoalMissed, Options, table
from bench.targets import workspace
from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.queue import RepairQueue

#: A node's loss is noticed; the first slice to repair is known so many seconds later at most.
FIRST_GOAL_S = 10.0
#: And the queue's own cost, for each slice that is lost.
SLICE_GOAL_S = 0.001
BATCH = 32
_NODES = 9
_DELAY_S = 600.0
_LIMIT_S = 600.0
_BATCHES = 1000
_ENOUGH = 100_000


@dataclass(frozen=True, slots=True)
class Found:
    """A node with ``lost`` slices is gone."""

    lost: int
    width: int  # copies of each slice
    first_s: float  # until the first batch is known
    slice_s: float  # a slice: of those handed out after it, and the first batch's time dealt to all
    load: float  # processes that wanted to run meanwhile, of the last minute

    @property
    def verdict(self) -> str:
        if self.lost < _ENOUGH:
            return "too few to tell"  # what does not depend on their number is dealt to all
        return "met" if self.first_s <= FIRST_GOAL_S and self.slice_s < SLICE_GOAL_S else "missed"


def fill(width: int, lost: int) -> str:
    """SQL: node 1 is gone, and ``lost`` files of one slice each were there and on ``width`` - 1 of the others."""
    others = ", ".join(f"2 + (n + {i}) % {_NODES - 1}" for i in range(width - 1))
    return f"""
SET session_replication_role = replica; -- no foreign key is looked up: three times as fast
DROP INDEX slice_places; -- made at the end: ten times as fast
INSERT INTO node (uuid, address, zone, capacity, used, free, state)
    SELECT gen_random_uuid(), 'localhost:' || 9000 + n, '', 100, 50, 50, 'active'
    FROM generate_series(1, {_NODES}) AS n;
SELECT setval('node_id_seq', {_NODES});
UPDATE node SET heartbeat_at = now() + interval '1 day';
UPDATE node SET heartbeat_at = now() - interval '1 day' WHERE id = 1;
INSERT INTO file (id, name, content_type, size, sha256, k, m, block_size, created_at)
    SELECT gen_random_uuid(), 'f' || n, 'text/plain', 20, sha256('a'), 1, {width - 1}, 4096,
        now() + make_interval(secs => n)
    FROM generate_series(1, {lost}) AS n;
INSERT INTO slice (id, file_id, ordinal, size, digest, nodes)
    SELECT gen_random_uuid(), f.id, 0, 20, 'digest', ARRAY[1, {others}]
    FROM (SELECT id, row_number() OVER ()::integer AS n FROM file) AS f;
CREATE INDEX slice_places ON slice USING gin (slice_places(nodes, id)) WITH (fastupdate = off);
ANALYZE;
"""  # noqa: S608 - numbers of our own


def run(options: Options, cleanup: ExitStack) -> list[Found]:
    """``--lost`` slices on the node that is gone, with one copy left of each, and with two. Raises GoalMissed."""
    folder = cleanup.enter_context(workspace(options.work))
    found = []
    for width in (2, 3):
        server = EmbeddedPostgres(folder / f"metadb{width}", {"fsync": "off", "full_page_writes": "off"})
        server.start()
        try:
            found.append(measure(server.url, width, options.lost))
        finally:
            server.stop()
    judge(found)
    return found


def measure(url: str, width: int, lost: int) -> Found:
    """Fill a MetaDB, and hand out batches of what is lost: more than the queue remembers at once."""
    meta = MetaDB(MetaDBConfig(url=url))  # with the limits of a service
    meta.migrate()
    _run(url, fill(width, lost))
    queue = RepairQueue(UpkeepDB(meta), _DELAY_S)
    began = time.perf_counter()
    queue.next(BATCH, _nobody, Deadline(_LIMIT_S))
    first = time.perf_counter() - began
    began, more = time.perf_counter(), 0
    for _ in range(_BATCHES):
        if not (tasks := queue.next(BATCH, _nobody, Deadline(_LIMIT_S))):
            break
        more += len(tasks)
    rest = time.perf_counter() - began
    meta.close()
    return Found(lost, width, first, rest / max(more, 1) + first / lost, os.getloadavg()[0])


def _nobody(_: UUID) -> bool:
    return False


def _run(url: str, sql: str) -> None:
    parsed = MetaURL.parse(url)
    link = Link(parsed, parsed.hosts[0], Deadline(_LIMIT_S), statement_timeout=0)
    try:
        link.raw._usock.settimeout(None)
        link.raw.run(sql)
    finally:
        link.close()


def judge(found: Sequence[Found]) -> None:
    """Print it. Raises GoalMissed."""
    rows = [["lost", "first batch", "a slice", "load", "goals"]]
    for one in found:
        figures = f"{one.first_s:.2f} s", f"{one.slice_s * 1000:.2f} ms", f"{one.load:.1f}"
        rows.append([f"{one.lost:,} slices, {one.width} copies", *figures, one.verdict])
    table(rows)
    print(f"goals: the first batch within {FIRST_GOAL_S:g} s, {SLICE_GOAL_S * 1000:g} ms a slice")
    if any(one.verdict == "missed" for one in found):
        raise GoalMissed("a goal was missed", found)
