"""A hundred thousand slices: what upkeep asks for is found by index, complete, and in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pg8000.native import Connection

from distfs.config.settings import MetaDBConfig, Seconds
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


_INDEXES = (
    "slice_pkey",
    "slice_places",
    "slice_file_id_ordinal_key",
)  # of live and deleted ones


@pytest.mark.parametrize(
    "call",
    [
        "hurt_count_on",
        "hurt_places",
        "hurt_on",
        "hurt_by_damage",
        "hurt_among",
        "hurt_count_by_damage",
        "move_fragment",
        "claims",
        "kept_count",
        "fragments_on(3, NULL, 100)",
        "slices_on(3, NULL, 100)",
        "short_without",
        "bytes_kept(3)",
        "strays",
        "note_damage",
        "is_damage",
        "is_kept",
        "drop_trash",
        "short_among",
        "kept_ids",
        "unknown_nodes",
    ],
)
def test_no_query_reads_every_slice(big: Big, call: str) -> None:
    """By the plan the server makes for the prepared statement, whatever the parameters are."""
    plan = generic_plan(big.url, call.split("(", maxsplit=1)[0])
    assert not whole_scans(plan), json.dumps(whole_scans(plan), indent=2)
    indexes = {node.get("Index Name") for node in nodes_of(plan)}
    function = any(
        "Function Name" in node for node in nodes_of(plan)
    )  # its own statements are in the next test
    assert function or any(str(name).endswith(_INDEXES) for name in indexes)


def test_a_scan_of_a_whole_index_is_noticed(big: Big) -> None:
    """The test above would: ordered by the primary key, from some id on, everything behind it is read."""
    by_key = "SELECT id FROM slice WHERE nodes @> '{3}' AND id > :after ORDER BY id LIMIT 5"
    whole = "SELECT id FROM slice WHERE nodes @> '{3}' ORDER BY id"
    for sql, off in ((by_key, "bitmapscan"), (whole, "bitmapscan"), (whole, "indexscan")):
        plan = generic_plan(
            big.url, sql, f"SET enable_{off} = off; SET enable_seqscan = {off == 'indexscan'}"
        )
        expected = off != "indexscan" or any(node["Node Type"] == "Seq Scan" for node in nodes_of(plan))
        assert bool(whole_scans(plan)) == expected, plan


@pytest.mark.parametrize(
    ("sql", "most"),
    [
        ("SELECT * FROM kept_by(3, '00000000-0000-0000-0000-000000000000', 100)", 500),
        ("SELECT * FROM kept_by(3, '80000000-0000-0000-0000-000000000000', 100)", 500),
        ("SELECT * FROM kept_by(999, '00000000-0000-0000-0000-000000000000', 100)", 0),
        ("SELECT safe_to_unplug(3)", 500),
        ("SELECT * FROM kept_count(3, 0, 50)", 500),
        ("SELECT * FROM short_without(3, '00000000-0000-0000-0000-000000000000', 100, 600)", 1000),
        (
            "SELECT * FROM hurt_among(ARRAY(SELECT id FROM kept_by(7, gen_random_uuid(), 50)), 600, false)",
            1000,
        ),
    ],
)
def test_no_function_reads_every_slice(big: Big, sql: str, most: int) -> None:
    """Counted by the server: a function's own plans are not seen from outside. Node 3 keeps one slice in fifty."""
    parsed = MetaURL.parse(big.url)
    connection = Connection(parsed.user, unix_sock=parsed.hosts[0].socket_path, database=parsed.database)
    counted = (
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_xact_user_tables "
        "WHERE relname IN ('slice', 'trash_slice')"
    )
    try:
        connection.run("BEGIN")
        connection.run(sql)
        [[read]] = connection.run(counted)
    finally:
        connection.close()
    assert read <= most


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes_of(part)


def whole_scans(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Those parts of a plan that may read every slice: of the table, or of an index from some place on."""
    found = []
    for node in nodes_of(plan):
        condition = node.get("Index Cond", "")
        by_index = " = " in condition or "= ANY" in condition or "&&" in condition or "@>" in condition
        of_slices = node.get("Relation Name") in ("slice", "trash_slice") or node.get(
            "Index Name", ""
        ).startswith(("slice_", "trash_slice_"))
        if of_slices and node["Node Type"] not in ("Bitmap Heap Scan", "ModifyTable") and not by_index:
            found.append(node)
    return found


def generic_plan(url: str, named: str, settings: str = "") -> dict[str, Any]:
    """How the server runs a named query (or this one) when it does not look at the parameters."""
    parsed = MetaURL.parse(url)
    connection = Connection(parsed.user, unix_sock=parsed.hosts[0].socket_path, database=parsed.database)
    try:
        connection.run(f"SET plan_cache_mode = force_generic_plan; {settings}")
        statement = connection.prepare(meta_schema.queries().get(named, named))
        [[sql]] = connection.run(
            "SELECT statement FROM pg_prepared_statements ORDER BY prepare_time DESC LIMIT 1"
        )
        connection.run(f"PREPARE asked AS {sql}")
        [[types]] = connection.run(
            "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'asked'"
        )
        given = f"({', '.join(['NULL'] * types)})" if types else ""
        [[plans]] = connection.run(f"EXPLAIN (FORMAT JSON, VERBOSE) EXECUTE asked {given}")
        statement.close()
        plan: dict[str, Any] = (json.loads(plans) if isinstance(plans, str) else plans)[0]["Plan"]
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
