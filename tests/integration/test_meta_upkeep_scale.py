"""A hundred thousand slices: what upkeep asks for is found by index, complete, and in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from pg8000.native import Connection

from distfs.config import MetaDBConfig, Seconds
from distfs.meta import MetaDB
from distfs.metadb import schema as meta_schema
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.metadb.url import MetaURL
from distfs.model import FragmentId
from distfs.upkeep.db import UpkeepDB
from tests.integration.meta_examples import soon
from tests.postgres import database_url, run_sql

SLICES, NODES = 100_000, 100
TRASHED = 20_000  # slices, on nodes above NODES: beside them all the same is to be found as quickly
DEAD = 7  # one more is dead; together they keep one slice in thirty-three

#: Slice n is on nodes n and n+1+n/NODES (modulo NODES, from 1), so that every pair of nodes meets.
_FILL = f"""
SET session_replication_role = replica; -- no foreign key is looked up: three times as fast
INSERT INTO node (uuid, address, zone, capacity, used, free, state)
    SELECT gen_random_uuid(), 'localhost:' || 9000 + n, '', 100, 50, 50, 'active'
    FROM generate_series(1, {NODES}) AS n;
INSERT INTO file (id, name, content_type, size, sha256, k, m, block_size, created_at)
    SELECT gen_random_uuid(), 'f' || n, 'text/plain', 20, sha256('a'), 1, 1, 4096, now() + make_interval(secs => n)
    FROM generate_series(1, {SLICES // 10}) AS n;
INSERT INTO slice (id, file_id, ordinal, size, digest, nodes)
    SELECT gen_random_uuid(), f.id, o, 2, 'digest',
        ARRAY[1 + (f.n * 10 + o) % {NODES}, 1 + (f.n * 10 + o + 1 + f.n % {NODES - 1}) % {NODES}]
    FROM (SELECT id, row_number() OVER (ORDER BY created_at)::integer AS n FROM file) AS f,
        generate_series(0, 9) AS o;
INSERT INTO trash (id, name, content_type, size, sha256, k, m, block_size, created_at)
    SELECT gen_random_uuid(), 't' || n, 'text/plain', 20, sha256('a'), 1, 1, 4096, now()
    FROM generate_series(1, {TRASHED // 10}) AS n;
INSERT INTO trash_slice (id, file_id, ordinal, size, digest, nodes)
    SELECT gen_random_uuid(), t.id, o, 2, 'digest',
        ARRAY[{NODES} + 1 + (t.n * 10 + o) % {NODES}, {NODES} + 1 + (t.n * 10 + o + 1) % {NODES}]
    FROM (SELECT id, row_number() OVER (ORDER BY id)::integer AS n FROM trash) AS t, generate_series(0, 9) AS o;
UPDATE node SET heartbeat_at = now() - interval '1 hour' WHERE id IN ({DEAD}, {DEAD + 1});
INSERT INTO damage (slice_id, index, node_id, reason) SELECT id, 1, nodes[2], 'gone' FROM slice LIMIT 10;
ANALYZE;
"""  # noqa: S608 - numbers of our own


@dataclass
class Big:
    """A MetaDB with SLICES slices on NODES nodes, of which DEAD and the next are silent."""

    url: str
    upkeep: UpkeepDB


@pytest.fixture(scope="module")
def big(postgres: EmbeddedPostgres) -> Iterator[Big]:
    run_sql(postgres.url, "CREATE DATABASE big TEMPLATE migrated")
    url = database_url(postgres, "big")
    run_sql(url, _FILL)
    # Nodes that nobody reports are up for as long as these tests may take; the silent ones have been for an hour.
    meta = MetaDB(MetaDBConfig(url=url, statement_timeout=Seconds(60)), down_after=1800.0)
    yield Big(url, UpkeepDB(meta))
    meta.close()
    run_sql(postgres.url, "DROP DATABASE big WITH (FORCE)")


def test_every_slice_of_a_dead_node_is_found_those_at_greatest_risk_first(big: Big) -> None:
    tasks = big.upkeep.work_to_repair(600, SLICES, soon())
    found = {task.piece.id: task.lost for task in tasks}
    expected = {
        piece: tuple(i for i, node in enumerate(nodes) if node in (DEAD, DEAD + 1) or (i == 1 and damaged))
        for piece, nodes, damaged in run_sql(
            big.url,
            "SELECT s.id, s.nodes, d.slice_id IS NOT NULL FROM slice s LEFT JOIN damage d ON d.slice_id = s.id",
        )
    }
    assert found == {piece: lost for piece, lost in expected.items() if lost}
    risks = [task.redundancy_left for task in tasks]
    assert risks == sorted(risks, key=lambda left: (left < 0, left))
    assert risks[-1] == -1
    assert [task.piece.id for task in big.upkeep.work_to_repair(600, 50, soon())] == [
        task.piece.id for task in tasks[:50]
    ]
    backlog = big.upkeep.backlog(600, soon())
    assert (backlog.slices, backlog.fragments) == (len(tasks), sum(len(task.lost) for task in tasks))
    assert backlog.hopeless == risks.count(-1)


def test_every_slice_of_a_node_is_listed_once(big: Big) -> None:
    pages: list[FragmentId] = []
    while page := big.upkeep.fragments_on(3, pages[-1].slice if pages else None, 700, soon()):
        pages += [kept.id for kept in page]
    rows = run_sql(
        big.url, "SELECT id, array_position(nodes, 3) - 1 FROM slice WHERE 3 = ANY (nodes) ORDER BY id"
    )
    assert pages == [FragmentId(*row) for row in rows]
    assert big.upkeep.fragments_left(3, soon()) == len(pages)
    assert all(claim.here for claim in big.upkeep.claims(3, pages, soon()).values())
    others = big.upkeep.claims(4, [i for i in pages if i.index == 0], soon())
    assert not any(claim.here for claim in others.values())


def test_status_adds_up(big: Big) -> None:
    status = big.upkeep.status(soon())
    assert sum(status.slices.values()) == SLICES
    assert status.slices[-1] == big.upkeep.backlog(600, soon()).hopeless
    assert status.damaged == 10


@pytest.mark.parametrize(
    "call",
    [
        "work_to_repair(600, 100)",
        "backlog(600)",
        "fragments_on(3, NULL, 100)",
        "slices_on(3, NULL, 100)",
        "fragments_left(3)",
        "bytes_kept(3)",
        "claims",
        "strays",
        "note_damage",
        "is_damage",
        "is_kept",
        "drop_trash",
        "short_files",
    ],
)
def test_no_query_reads_every_slice(big: Big, call: str) -> None:
    """By the plan the server makes for the prepared statement, whatever the parameters are."""
    name = call.split("(", maxsplit=1)[0]
    plan = generic_plan(big.url, name)
    assert not any(f"Seq Scan on {t}" in line for t in ("slice", "trash_slice") for line in plan), "\n".join(
        plan
    )
    assert any("slice_nodes" in line or "slice_pkey" in line or "slice_file_id" in line for line in plan)


def generic_plan(url: str, name: str) -> list[str]:
    """How the server runs a named query when it does not look at the parameters."""
    parsed = MetaURL.parse(url)
    connection = Connection(parsed.user, unix_sock=parsed.hosts[0].socket_path, database=parsed.database)
    try:
        connection.run("SET plan_cache_mode = force_generic_plan")
        statement = connection.prepare(meta_schema.queries()[name])
        [[sql]] = connection.run(
            "SELECT statement FROM pg_prepared_statements ORDER BY prepare_time DESC LIMIT 1"
        )
        connection.run(f"PREPARE asked AS {sql}")
        [[types]] = connection.run(
            "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'asked'"
        )
        nulls = ", ".join(["NULL"] * types)
        plan = [line for [line] in connection.run(f"EXPLAIN EXECUTE asked ({nulls})")]
        statement.close()
        return plan
    finally:
        connection.close()


def test_the_slices_that_are_crowded_in_a_zone_are_found_in_pages(big: Big) -> None:
    """Nobody reads all slices into memory to find those."""
    run_sql(big.url, "UPDATE node SET zone = CASE WHEN id % 10 < 5 THEN 'a' ELSE 'b' END")
    try:
        expected = {
            piece
            for piece, nodes in run_sql(big.url, "SELECT id, nodes FROM slice")
            if len({node % 10 < 5 for node in nodes}) == 1
        }
        found, after, pages = [], None, 0
        while after is not None or not pages:
            tasks, after = big.upkeep.crowded_slices(["a", "b"], after, 5000, 10_000, soon())
            found += [task.piece.id for task in tasks]
            pages += 1
        assert (len(found), set(found)) == (len(expected), expected)
        assert pages == SLICES // 5000 + 1
    finally:
        run_sql(big.url, "UPDATE node SET zone = ''")
