"""A node keeps a great many slices: no statement goes through all of them, whoever asks, and all are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest
from pg8000.native import DatabaseError

from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import Refused
from distfs.meta import MetaDB
from distfs.metadb.answers import Rows
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.model import FragmentId
from distfs.upkeep import db as upkeep_db
from distfs.upkeep import in_pages
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.model import Backlog, Leaving
from tests.integration.meta_examples import placed, register, soon
from tests.integration.test_repair_queue import _FILL, LOST
from tests.postgres import databases, run_sql

SLICES = 20_000  # all of them on node 1, which is gone, and on two others; a thousand of them in the trash
TRASHED = 1000
PAGE = 1000
DELAY = 600.0
_START, _HALF = UUID(int=0), UUID(int=1 << 127)

_DELETE = f"""
CREATE TEMPORARY TABLE gone AS SELECT * FROM file ORDER BY created_at LIMIT {TRASHED};
INSERT INTO trash (id, name, content_type, size, sha256, k, m, block_size, created_at)
    SELECT id, name, content_type, size, sha256, k, m, block_size, created_at FROM gone;
INSERT INTO trash_slice SELECT slice.* FROM slice JOIN gone ON gone.id = slice.file_id;
DELETE FROM slice USING gone WHERE gone.id = slice.file_id;
DELETE FROM file USING gone WHERE gone.id = file.id;
UPDATE node SET heartbeat_at = now() + interval '1 day' WHERE id > 1;
SELECT setval('node_id_seq', 9);
ANALYZE;
"""  # noqa: S608 - numbers of our own


class Watched(MetaDB):
    """Remembers what was asked."""

    def __init__(self, config: MetaDBConfig) -> None:
        super().__init__(config)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def read(self, query: str, deadline: Deadline, **params: Any) -> Rows:
        self.asked.append((query, params))
        return super().read(query, deadline, **params)

    def count(self, query: str) -> int:
        return sum(name == query for name, _ in self.asked)


@pytest.fixture(scope="module")
def filled(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The name of a database to be cloned: to fill one takes ten times as long."""
    with databases(postgres) as make:
        url = make("migrated")
        run_sql(url, _FILL.replace(str(LOST), str(SLICES)) + _DELETE)
        [[name]] = run_sql(url, "SELECT current_database()")
        yield name


@pytest.fixture
def url(filled: str, make_database: Callable[[str], str]) -> str:
    return make_database(filled)


@pytest.fixture
def watched(url: str) -> Iterator[Watched]:
    with closing(Watched(MetaDBConfig(url=url))) as meta:
        yield meta


@pytest.fixture
def upkeep(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> UpkeepDB:
    monkeypatch.setattr(upkeep_db, "_PAGE", PAGE)
    monkeypatch.setattr(upkeep_db, "COUNTED", PAGE)
    monkeypatch.setattr(upkeep_db, "_SAMPLE", PAGE)
    monkeypatch.setattr(in_pages, "_PAGE", PAGE)
    monkeypatch.setattr(in_pages, "_COUNTED", PAGE)
    return UpkeepDB(watched)


_SILENT = {"silence": DELAY, "stopped": True}

QUERIES: dict[str, dict[str, Any]] = {
    "hurt_places": {"unnamed": [], **_SILENT},
    "hurt_on": {"node": 1, "after": _START, "limit": PAGE, "repair_delay": DELAY},
    "hurt_count_on": {"node": 1, "after": _START, "limit": PAGE, **_SILENT},
    "hurt_count_by_damage": {"after": _START, "limit": PAGE, **_SILENT},
    "hurt_by_damage": {"after": _START, "limit": PAGE, "repair_delay": DELAY},
    "fragments_on": {"node": 1, "after": _START, "limit": PAGE},
    "slices_on": {"node": 1, "after": _HALF, "limit": PAGE},
    "kept_count": {"node": 1, "part": 0, "enough": PAGE},
    "bytes_kept": {"node": 1, "limit": PAGE},
    "safe_to_unplug": {"node": 1},
    "unknown_nodes": {},
    "begin_forget": {"node": 1, "down_after": 10.0},
    "short_without": {"node": 1, "after": _START, "limit": PAGE, "down_after": 10.0},
    "forget_node": {"node": 1, "down_after": 10.0, "word": _START},
    "end_forget": {"node": 1},
    "kept_ids": {"node": 1, "after": _START, "limit": PAGE},
    "damaged_ids": {"after": _START, "limit": PAGE},
    "slice_totals": {"after": _START, "limit": PAGE},
    "file_totals": {"after": _START, "limit": PAGE},
    "trash_totals": {"after": _START, "limit": PAGE},
}


def test_no_statement_reads_more_than_a_few_pages(url: str) -> None:
    """A page is its limit and a 256th of what the node keeps. With a million slices that is 4000 rows and 7 ms."""
    run_sql(url, "UPDATE node SET state = 'draining' WHERE id = 1")
    run_sql(url, "INSERT INTO forgetting (node_id, word, state) VALUES (1, :word, 'active')", word=_START)
    run_sql(
        url, "INSERT INTO damage (slice_id, index, node_id, reason) SELECT id, 1, nodes[2], 'bad' FROM slice"
    )
    counted = (
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_xact_user_tables "
        "WHERE relname IN ('slice', 'trash_slice', 'file', 'trash')"
    )
    ids = [id for [id] in run_sql(url, f"SELECT id FROM slice ORDER BY id LIMIT {PAGE}")]  # noqa: S608
    short = {"ids": ids, "nodes": [1, 2], "counted": [2], "slices": ids, "indexes": [0] * PAGE}
    parsed, read = MetaURL.parse(url), {}
    for query, params in (QUERIES | {"short_among": short}).items():
        with closing(Link(parsed, parsed.hosts[0], soon(), statement_timeout=60)) as link:
            link.raw.run("SET enable_seqscan = off; BEGIN")  # as the planner would do with a million
            link.run(query, soon(), params)
            [[read[query]]] = link.raw.run(counted)
    assert {query: rows for query, rows in read.items() if rows > 5 * (PAGE + SLICES // 256)} == {}
    count = ("kept_count", "short_without", "hurt_count_on", "short_among", "slice_totals", "file_totals")
    assert min(read[query] for query in count) >= PAGE, "else nothing is counted here"


def test_all_of_a_node_is_counted_page_by_page(upkeep: UpkeepDB, watched: Watched, url: str) -> None:
    assert upkeep.backlog(DELAY, soon()) == Backlog(SLICES, SLICES, 20 * SLICES, 0)
    assert watched.count("hurt_count_on") == SLICES // PAGE + 1
    status = upkeep.status(soon())
    assert (status.slices, status.lacking) == ({1: SLICES - TRASHED}, upkeep.backlog(DELAY, soon()))


def test_all_that_there_is_is_counted_page_by_page(upkeep: UpkeepDB, watched: Watched, url: str) -> None:
    run_sql(url, "UPDATE file SET m = 1 WHERE id < :below", below=_HALF)
    run_sql(url, "UPDATE node SET heartbeat_at = now() + interval '1 day'")
    [[few]] = run_sql(url, "SELECT count(*) FROM file WHERE m = 1")
    status = upkeep.status(soon())
    files = SLICES - TRASHED
    assert (status.files, status.bytes, status.slices) == (files, 20 * files, {1: few, 2: files - few})
    assert (status.trash_files, status.trash_bytes) == (TRASHED, 20 * TRASHED)
    for query, rows in (("slice_totals", files), ("file_totals", files), ("trash_totals", TRASHED)):
        assert watched.count(query) == rows // PAGE + 1


def test_files_that_are_short_without_some_nodes_are_found_page_by_page(
    upkeep: UpkeepDB, watched: Watched, url: str
) -> None:
    """Each slice counts once, in however many ways it is short."""
    others = run_sql(url, "SELECT id FROM slice WHERE NOT nodes && '{2,3}' ORDER BY id LIMIT 4")
    bad, damaged, both, well = [id for [id] in others]
    run_sql(url, "UPDATE slice SET nodes = '{7,8,9}' WHERE id = ANY(:ids)", ids=[bad, damaged, both, well])
    noted = [(damaged, 0), (damaged, 1), (damaged, 2), (both, 0), (well, 0)]
    for id, index in noted:
        note = "INSERT INTO damage (slice_id, index, node_id, reason) VALUES (:id, :index, :node, 'bad')"
        run_sql(url, note, id=id, index=index, node=7 + index)
    found = [
        FragmentId(bad, 0),
        FragmentId(bad, 1),
        FragmentId(bad, 2),
        FragmentId(both, 1),
        FragmentId(both, 2),
    ]
    expected = run_sql(
        url,
        "SELECT f.id, f.created_at, false FROM slice AS s JOIN file AS f ON f.id = s.file_id "
        "WHERE s.nodes <@ '{1,2,3}' OR s.id = ANY(:ids) UNION ALL "
        "SELECT f.id, f.created_at, true FROM trash_slice AS s JOIN trash AS f ON f.id = s.file_id "
        "WHERE s.nodes <@ '{1,2,3}' ORDER BY 3, 2",
        ids=[bad, damaged, both],
    )
    short = upkeep.short_files([1, 2, 3], found, soon())
    assert [(file.id, file.trashed) for file in short] == [(id, trashed) for id, _, trashed in expected]
    assert {file.slices for file in short} == {1}
    assert len(short) > 2 * PAGE
    asked = [params["ids"] for query, params in watched.asked if query == "short_among"]
    assert max(map(len, asked)) == PAGE
    assert len(asked) > SLICES // PAGE


def test_how_many_fragments_are_left_is_estimated_and_falls_with_each_that_leaves(
    upkeep: UpkeepDB, watched: Watched, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while some stay behind: else who waits for a drain would think that it is stuck."""
    stays = UUID(int=1 << 123)
    told = [upkeep.fragments_left(1, soon())]
    assert watched.count("kept_count") == 2
    assert told[0] == pytest.approx(SLICES, rel=0.2), "from 8 of 256 parts"
    assert upkeep.bytes_kept(1, soon()) == 20 * told[0]
    for _ in range(20):
        for table in ("slice", "trash_slice"):
            leave = f"UPDATE {table} SET nodes[1] = 0 WHERE id IN (SELECT id FROM kept_by(1, :after, 300))"  # noqa: S608
            run_sql(url, leave, after=stays)
        told.append(upkeep.fragments_left(1, soon()))
    assert told == sorted(told, reverse=True)
    assert len(set(told)) == len(told)
    assert upkeep.leaving(1, soon()) == Leaving(told[-1], safe=False)
    monkeypatch.setattr(upkeep_db, "COUNTED", 10 * SLICES)
    [[left]] = run_sql(url, "SELECT count(*) FROM kept_by(1, :after, 1000000)", after=_START)
    assert upkeep.fragments_left(1, soon()) == left, "few are counted"


def test_a_slice_that_is_hurt_in_several_ways_counts_once(upkeep: UpkeepDB, url: str) -> None:
    """On two nodes that are gone, damaged as well, kept by nobody twice."""
    run_sql(url, "UPDATE node SET heartbeat_at = now() - interval '1 hour' WHERE id = 2")
    run_sql(
        url,
        "INSERT INTO damage (slice_id, index, node_id, reason) "
        "SELECT id, i, nodes[i + 1], 'bad' FROM slice, generate_series(0, 1) AS i WHERE id < :below",
        below=UUID(int=1 << 126),
    )
    run_sql(
        url,
        "UPDATE slice SET nodes[2] = 0, nodes[3] = 0 WHERE id > 'f0000000-0000-0000-0000-000000000000'",
    )
    tasks = upkeep.work_to_repair(DELAY, 2 * SLICES, soon())
    assert len(tasks) == SLICES
    hopeless = sum(task.redundancy_left < 0 for task in tasks)
    assert hopeless > 0
    assert upkeep.backlog(DELAY, soon()) == Backlog(
        len(tasks),
        sum(len(task.lost) for task in tasks),
        sum(len(task.lost) * task.fragment_size for task in tasks),
        hopeless,
    )
    status = upkeep.status(soon())
    assert (sum(status.slices.values()), status.slices[-1]) == (SLICES - TRASHED, hopeless)


def test_a_large_node_is_forgotten_page_by_page_unless_something_is_on_it_alone(
    upkeep: UpkeepDB, watched: Watched, url: str
) -> None:
    alone = [id for [id] in run_sql(url, "SELECT id FROM slice ORDER BY id DESC LIMIT 3")]
    run_sql(url, "UPDATE slice SET nodes = '{1,0,0}' WHERE id = ANY(:alone)", alone=alone)
    with pytest.raises(Refused, match="without node 1 there is not enough left to read 3 slices of 3 files"):
        upkeep.forget_node(1, soon())
    assert run_sql(url, "SELECT state FROM node WHERE id = 1") == [["active"]]
    run_sql(url, "UPDATE slice SET nodes = '{1,2,0}' WHERE id = ANY(:alone)", alone=alone)
    watched.asked.clear()
    upkeep.forget_node(1, soon())
    assert watched.count("short_without") == SLICES // PAGE + 1
    assert run_sql(url, "SELECT id FROM node WHERE id = 1") == []
    assert upkeep.backlog(DELAY, soon()).slices == SLICES


def test_a_service_of_the_release_before_forgets_in_one_statement(url: str) -> None:
    [[id]] = run_sql(url, "SELECT id FROM slice LIMIT 1")
    run_sql(url, "UPDATE slice SET nodes = '{1,0,0}' WHERE id = :id", id=id)
    with pytest.raises(DatabaseError, match="not enough left to read 1 slices of 1 files"):
        run_sql(url, "SELECT forget_node(1, 10)")
    run_sql(url, "UPDATE slice SET nodes = '{1,2,0}' WHERE id = :id", id=id)
    run_sql(url, "SELECT forget_node(1, 10)")
    assert run_sql(url, "SELECT id FROM node WHERE id = 1") == []


def test_a_node_that_would_lose_a_great_many_is_refused_soon(
    upkeep: UpkeepDB, watched: Watched, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_pages, "_SHORT", PAGE)
    run_sql(url, "UPDATE slice SET nodes = '{1}'; UPDATE trash_slice SET nodes = '{1}'")
    with pytest.raises(Refused, match="to read at least 1000 slices of 1000 files"):
        upkeep.forget_node(1, soon())
    assert watched.count("short_without") == 1


def test_what_names_a_node_while_it_is_being_forgotten_is_not_missed(
    upkeep: UpkeepDB, watched: Watched, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first page on nobody may name it any more."""
    states = []
    read = watched.read

    def look(query: str, deadline: Deadline, **params: Any) -> Rows:
        if query == "short_without":
            states.extend(run_sql(url, "SELECT state, may_name(1, false) FROM node WHERE id = 1"))
        return read(query, deadline, **params)

    monkeypatch.setattr(watched, "read", look)
    upkeep.forget_node(1, soon())
    assert states == [["draining", False]] * (SLICES // PAGE + 1)


def test_a_forgotten_node_that_no_slice_names_is_looked_for_once_in_a_while(
    upkeep: UpkeepDB, watched: Watched, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep.forget_node(1, soon())
    for _ in range(2):
        assert upkeep.hurt_places(DELAY, soon())[0] == [1], "what it kept is not made anew yet"
    run_sql(url, "UPDATE slice SET nodes = '{7,8,9}'; UPDATE trash_slice SET nodes = '{7,8,9}'")
    run_sql(url, "UPDATE node SET heartbeat_at = now() - interval '1 hour' WHERE id = 2")
    for _ in range(2):
        assert upkeep.hurt_places(DELAY, soon())[0] == []
    asked = [params["unnamed"] for query, params in watched.asked if query == "hurt_places"]
    assert asked == [[], [], [], [1]], "a node that is only away, and nobody, may be named again"
    run_sql(url, "UPDATE slice SET nodes = '{1,8,9}'")  # as after a restore from before its repair
    monkeypatch.setattr(upkeep_db, "_UNNAMED_FOR_S", 0.0)
    assert upkeep.hurt_places(DELAY, soon())[0] == [1]
    monkeypatch.setattr(upkeep_db, "_UNNAMED_FOR_S", 600.0)
    assert upkeep.hurt_places(DELAY, soon())[0] == [1], "it is named"


def test_a_node_that_registers_after_repair_has_looked_is_not_taken_for_a_forgotten_one(
    make_database: Callable[[str], str],
) -> None:
    """A service may look before any node is there, and between a node's number and its row."""
    url = make_database("migrated")
    with closing(MetaDB(MetaDBConfig(url=url))) as meta:
        upkeep, another = UpkeepDB(meta), UpkeepDB(meta)
        for each in (upkeep, another):
            assert each.hurt_places(DELAY, soon())[0] == []
        register(meta, 2)
        meta.commit_files([placed((1, 2))], soon())
        assert another.hurt_places(DELAY, soon())[0] == [], "all is well"
        run_sql(url, "UPDATE node SET given_up = true WHERE id = 1")
        assert upkeep.hurt_places(DELAY, soon())[0] == [1]
        assert upkeep.backlog(DELAY, soon()).slices == 1
        run_sql(url, "DELETE FROM node WHERE id = 1")
        assert another.hurt_places(DELAY, soon())[0] == [1], "it was listed since"
