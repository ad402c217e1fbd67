"""A large node is gone: repair begins at once with what is at the greatest risk, and finds all of it in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest

from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.upkeep import queue
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.model import Hurt, RepairTask
from distfs.upkeep.queue import RepairQueue
from tests.contract.litter import eventually
from tests.integration.meta_examples import soon
from tests.postgres import database_url, run_sql

LOST = 100_000  # slices on the node that is gone
DELAY = 600

#: Node 1 is gone. Every file has one slice, there and on others: three copies, but for those of :urgent two.
_FILL = f"""
SET session_replication_role = replica; -- no foreign key is looked up: three times as fast
INSERT INTO node (uuid, address, zone, capacity, used, free, state)
    SELECT gen_random_uuid(), 'localhost:' || 9000 + n, '', 100, 50, 50, 'active' FROM generate_series(1, 9) AS n;
UPDATE node SET heartbeat_at = now() - interval '1 hour' WHERE id = 1;
INSERT INTO file (id, name, content_type, size, sha256, k, m, block_size, created_at)
    SELECT gen_random_uuid(), 'f' || n, 'text/plain', 20, sha256('a'), 1, 2, 4096, now() + make_interval(secs => n)
    FROM generate_series(1, {LOST}) AS n;
INSERT INTO slice (id, file_id, ordinal, size, digest, nodes)
    SELECT gen_random_uuid(), f.id, 0, 20, 'digest', ARRAY[1, 2 + n % 8, 2 + (n + 1) % 8]
    FROM (SELECT id, row_number() OVER ()::integer AS n FROM file) AS f;
"""  # noqa: S608 - numbers of our own


@pytest.fixture(scope="module")
def gone(postgres: EmbeddedPostgres) -> Iterator[str]:
    run_sql(postgres.url, "CREATE DATABASE gone TEMPLATE migrated")
    url = database_url(postgres, "gone")
    run_sql(url, _FILL)
    yield url
    run_sql(postgres.url, "DROP DATABASE gone WITH (FORCE)")


class Counting(UpkeepDB):
    """Counts what is looked at."""

    pages = 0

    def hurt_page(
        self, node: int | None, after: UUID | None, limit: int, repair_delay: float, deadline: Deadline
    ) -> tuple[list[Hurt], UUID | None]:
        self.pages += 1
        return super().hurt_page(node, after, limit, repair_delay, deadline)


@pytest.fixture
def db(gone: str) -> Iterator[Counting]:
    # Nodes that nobody reports are up for as long as these tests may take; the silent one has been for an hour.
    meta = MetaDB(MetaDBConfig(url=gone, statement_timeout=Seconds(60)), down_after=1800.0)
    yield Counting(meta)
    meta.close()


def nobody(_: UUID) -> bool:
    return False


def rows_read(url: str) -> int:
    """Rows of slices that were read so far, by whatever plan, of sessions that have ended. Waits for the others."""
    others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    eventually(lambda: run_sql(url, others) == [], "what others did is counted")
    [[rows]] = run_sql(
        url,
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables "
        "WHERE relname IN ('slice', 'trash_slice')",
    )
    return int(rows)


def workers_launched(url: str) -> int:
    """By sessions that have ended, as ``rows_read``."""
    [[count]] = run_sql(
        url, "SELECT parallel_workers_launched FROM pg_stat_database WHERE datname = current_database()"
    )
    return int(count)


def test_what_one_loss_more_would_destroy_is_found_among_a_hundred_thousand(db: Counting, gone: str) -> None:
    """Also when it comes last in the order in which slices are gone through."""
    urgent = {row[0] for row in run_sql(gone, "SELECT id FROM slice ORDER BY id DESC LIMIT 40")}
    run_sql(gone, "UPDATE slice SET nodes = ARRAY[1, 2, 0] WHERE id = ANY(:ids)", ids=list(urgent))
    try:
        found = RepairQueue(db, DELAY, look=float("inf"))
        first = found.next(60, nobody, soon())
        assert {task.piece.id for task in first[:40]} == urgent
        assert [task.redundancy_left for task in first] == [0] * 40 + [1] * 20
        assert all(task.lost[0] == 0 for task in first)
    finally:
        run_sql(gone, "UPDATE slice SET nodes = ARRAY[1, 2, 3] WHERE id = ANY(:ids)", ids=list(urgent))


def test_repair_begins_before_all_was_looked_at(db: Counting) -> None:
    tasks = RepairQueue(db, DELAY, look=0.0).next(32, nobody, soon())
    assert (len(tasks), db.pages) == (32, 1)


def test_what_is_read_of_a_large_node_grows_with_what_is_handed_out_alone(
    gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than a few rows a slice, and no parallel workers, when the planner is as it is with ten times as many
    slices: to read all of them is not cheap, workers are. One page is 256 small searches; to start workers for each
    took longer than any statement may."""
    monkeypatch.setattr(queue, "_LOOK_ON_S", 0.0)
    settings = (
        "enable_seqscan",
        "parallel_setup_cost",
        "parallel_tuple_cost",
        "min_parallel_table_scan_size",
    )
    for name in settings:
        run_sql(gone, f"ALTER DATABASE gone SET {name} = 0")
    rows, workers = rows_read(gone), workers_launched(gone)
    meta = MetaDB(MetaDBConfig(url=gone, statement_timeout=Seconds(60)), down_after=1800.0)
    db = UpkeepDB(meta)
    assert db.hurt_places(DELAY, soon())[0] == [1], (
        "and nobody, who keeps nothing, wherever that is looked for"
    )
    found = RepairQueue(db, DELAY, look=0.0)
    handed = sum(len(found.next(32, nobody, soon())) for _ in range(100))
    meta.close()
    assert handed > 3000  # a batch at the end of a page may be a short one
    assert rows_read(gone) - rows < 6 * handed
    assert workers_launched(gone) == workers
    for name in settings:
        run_sql(gone, f"ALTER DATABASE gone RESET {name}")


def test_who_found_enough_that_is_urgent_looks_no_further(make_database: Callable[[str], str]) -> None:
    url = make_database("migrated")
    run_sql(url, _FILL.replace(str(LOST), "20000"))
    run_sql(url, "UPDATE file SET m = 1; UPDATE slice SET nodes = nodes[1:2]")
    before = rows_read(url)
    db = Counting(MetaDB(MetaDBConfig(url=url), down_after=1800.0))
    found = RepairQueue(db, DELAY, look=float("inf"))
    seen: set[UUID] = set()
    for _ in range(10):
        tasks = found.next(32, nobody, soon())
        assert all(task.redundancy_left == 0 for task in tasks)
        seen |= {task.piece.id for task in tasks}
    assert (len(seen), db.pages) == (320, 1)
    db._meta.close()
    read = rows_read(url) - before
    assert 2000 < read < 60_000, "not all of the 20000 each time"


def test_everything_is_handed_out_the_most_endangered_first(
    make_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With far more to do than is remembered at once, while it is being repaired."""
    monkeypatch.setattr(queue, "_PAGE", 300)
    monkeypatch.setattr(queue, "_KEPT", 500)
    url = make_database("migrated")
    run_sql(url, _FILL.replace(str(LOST), "5000"))
    run_sql(url, "UPDATE slice SET nodes[2] = 0 WHERE id < '10000000-0000-0000-0000-000000000000'")
    run_sql(url, "UPDATE slice SET nodes = '{1,0,0}' WHERE id > 'f0000000-0000-0000-0000-000000000000'")
    run_sql(
        url,
        "INSERT INTO damage (slice_id, index, node_id, reason) SELECT id, 1, nodes[2], 'bad' FROM slice "
        "WHERE id BETWEEN '70000000-0000-0000-0000-000000000000' AND '80000000-0000-0000-0000-000000000000'",
    )
    # As many rows at once as nobody asks for in use: on a busy machine they take long.
    meta = MetaDB(MetaDBConfig(url=url, statement_timeout=Seconds(60)), down_after=1800.0)
    expected = {task.piece.id: task for task in UpkeepDB(meta).work_to_repair(DELAY, 10_000, soon())}
    assert len(expected) == 5000
    found = RepairQueue(UpkeepDB(meta), DELAY, look=float("inf"))
    order: list[RepairTask] = []
    while tasks := found.next(200, nobody, soon()):
        found.give_back(tasks[100:])  # not begun
        order += tasks[:100]
        done = [task.piece.id for task in tasks[:100]]
        run_sql(url, "DELETE FROM damage WHERE slice_id = ANY(:ids)", ids=done)
        run_sql(url, "UPDATE slice SET nodes = '{7,8,9}' WHERE id = ANY(:ids)", ids=done)
    meta.close()
    assert len(order) == 5000
    assert {task.piece.id: task for task in order} == expected
    risks = [(task.redundancy_left < 0, task.redundancy_left) for task in order]
    assert risks == sorted(risks)
    assert risks[0] == (False, 0)
    assert risks[-1] == (True, -1)


def test_what_is_left_alone_hides_nobody_and_is_found_again(make_database: Callable[[str], str]) -> None:
    url = make_database("migrated")
    run_sql(url, _FILL.replace(str(LOST), "100"))
    meta = MetaDB(MetaDBConfig(url=url), down_after=1800.0)
    ids = [row[0] for row in run_sql(url, "SELECT id FROM slice ORDER BY id")]
    stuck = set(ids[:90])
    found = RepairQueue(UpkeepDB(meta), DELAY)
    assert {task.piece.id for task in found.next(10, stuck.__contains__, soon())} == set(ids) - stuck
    found.next(200, nobody, soon())  # the rest of what is known
    assert {task.piece.id for task in found.next(200, nobody, soon())} == set(ids)
    meta.close()


def test_more_that_is_lost_meanwhile_goes_first(make_database: Callable[[str], str]) -> None:
    url = make_database("migrated")
    run_sql(url, _FILL.replace(str(LOST), "100"))
    meta = MetaDB(MetaDBConfig(url=url), down_after=1800.0)
    found = RepairQueue(UpkeepDB(meta), DELAY)
    assert [task.redundancy_left for task in found.next(10, nobody, soon())] == [1] * 10
    run_sql(url, "UPDATE node SET heartbeat_at = now() - interval '1 hour' WHERE id = 2")
    found.look_anew()  # as after ten seconds
    [[both]] = run_sql(url, "SELECT count(*) FROM slice WHERE nodes @> '{1,2}'")
    tasks = found.next(100, nobody, soon())
    assert [task.redundancy_left for task in tasks[: both + 1]] == [0] * both + [1]
    meta.close()
