"""Lines of the log in a real MetaDB: in batches, by days, bounded, and never in anybody's way."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from distfs import log_store
from distfs.config.settings import Bytes, Config, LogConfig, MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.log_store import LogStore, stored
from distfs.meta import MetaDB
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.telemetry import metrics
from distfs.telemetry.context import enter_request, leave_request
from distfs.telemetry.log_search import Wanted
from distfs.telemetry.logs import flush_log, setup_logging
from tests.contract.litter import eventually
from tests.integration.test_roles_rights import as_role
from tests.postgres import run_sql

CONFIG = LogConfig(store="metadb")
ALL = Wanted()
DAYS = r"SELECT relname FROM pg_class WHERE relname LIKE 'log\_day\_%' AND relkind = 'r' ORDER BY 1"
log = logging.getLogger("distfs.test")


def line(message: str, when: str = "2026-01-31T12:00:00.123Z", request: str = "r-1", **more: object) -> str:
    said = {"part": "x", "time": when, "level": "INFO", "event": "request", "request_id": request}
    return json.dumps({**said, "message": message, **more}) + "\n"


@pytest.fixture
def store(metadb_url: str) -> Iterator[LogStore]:
    metrics.share()
    with closing(LogStore(MetaDBConfig(url=metadb_url), CONFIG)) as made:
        yield made


def told(url: str, wanted: Wanted = ALL, since: float | None = None) -> list[str]:
    found = stored(MetaDBConfig(url=url), wanted, since, Deadline(60))
    return [str(said["message"]) for _, _, said in found]


def test_what_is_logged_is_read_back_in_order_of_time(metadb_url: str, store: LogStore) -> None:
    store.write(line("third", "2026-01-31T12:00:02.000Z", "r-2") + line("first"))
    store.write(line("second \u20ac \udc80 \x00\n", "2026-01-31T12:00:01.000Z", file="f-1"))
    store.write("no JSON\n")
    store.flush()
    assert told(metadb_url) == ["first", "second \u20ac \udc80 \x00\n", "third"]
    assert told(metadb_url, Wanted(request="r-2")) == ["third"]
    assert told(metadb_url, Wanted(file="f-1")) == ["second \u20ac \udc80 \x00\n"]
    assert told(metadb_url, Wanted(since="2026-01-31T12:00:01.500Z")) == ["third"]
    assert told(metadb_url, Wanted(until="2026-01-31T12:00:01.500Z"))[-1].startswith("second")
    assert told(metadb_url, Wanted(level="ERROR")) == []
    assert run_sql(metadb_url, "SELECT count(*) FROM log_line") == [[4]]
    assert store.dropped == 0


def test_more_than_a_page_is_read_page_by_page(
    metadb_url: str, store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_store, "_PAGE", 7)
    monkeypatch.setattr(log_store, "BATCH", 10)
    store.write("".join(line(f"{number:02d}") for number in range(50)))
    store.flush()
    assert told(metadb_url) == [f"{number:02d}" for number in range(50)]


def test_days_that_are_too_old_go_with_all_they_have(metadb_url: str, store: LogStore) -> None:
    store.write(line("today"))
    store.flush()
    [[today]] = run_sql(metadb_url, DAYS)
    for day, begins, ends in [
        ("log_day_20200101", "2020-01-01", "2020-01-02"),
        ("log_day_20200102", "2020-01-02", "2020-01-03"),
    ]:
        run_sql(
            metadb_url,
            f"CREATE TABLE {day} PARTITION OF log_line "
            f"FOR VALUES FROM ('{begins} 00:00:00+00') TO ('{ends} 00:00:00+00')",
        )
    run_sql(metadb_url, "INSERT INTO log_line VALUES ('2020-01-01 12:00:00+00', '', '-', 'old')")
    store.write(line("more"))
    store.flush()
    assert len(run_sql(metadb_url, DAYS)) == 3, "this one, as a node's, removes nothing"
    with closing(LogStore(MetaDBConfig(url=metadb_url), CONFIG, forgets=True)) as service:
        service.write(line("of a service"))
        eventually(lambda: run_sql(metadb_url, DAYS) == [[today]], "old days are removed")
    assert sorted(told(metadb_url)) == ["more", "of a service", "today"]


def test_the_oldest_days_go_where_all_have_more_than_they_may(metadb_url: str, store: LogStore) -> None:
    """As the oldest files do."""
    store.write(line("today"))
    store.flush()
    [[today]] = run_sql(metadb_url, DAYS)
    for day in ("2020-01-01", "2020-01-02", "2020-01-03"):
        name = f"log_day_{day.replace('-', '')}"
        run_sql(
            metadb_url,
            f"CREATE TABLE {name} PARTITION OF log_line FOR VALUES FROM ('{day} 00:00+00') TO ('{day} 24:00+00')",
        )
        fill = "INSERT INTO %s SELECT '%s 12:00+00', '', '-', repeat(md5(n::text), 60) FROM generate_series(1, 300) n"
        run_sql(metadb_url, fill.replace("%s", name, 1).replace("%s", day, 1))
    [[each]] = run_sql(metadb_url, "SELECT pg_total_relation_size('log_day_20200103')")
    forever = f"SELECT log_forget(1e10, {int(2.5 * float(str(each)))})"
    run_sql(metadb_url, forever)
    assert run_sql(metadb_url, DAYS) == [["log_day_20200102"], ["log_day_20200103"], [today]]
    run_sql(metadb_url, "SELECT log_forget(1e10)")
    assert len(run_sql(metadb_url, DAYS)) == 3, "the release before keeps all"
    run_sql(metadb_url, "SELECT log_forget(1e10, 0)")
    assert run_sql(metadb_url, DAYS) == [[today]]


def test_a_backup_that_runs_into_a_new_day_holds_up_no_line(metadb_url: str, store: LogStore) -> None:
    store.write(line("before"))
    store.flush()
    [[today]] = run_sql(metadb_url, DAYS)
    run_sql(metadb_url, f"DROP TABLE {today}")
    parsed = MetaURL.parse(metadb_url)
    with closing(Link(parsed, parsed.hosts[0], Deadline(10), statement_timeout=120).raw) as backup:
        backup.run("BEGIN")
        backup.run("LOCK TABLE log_line IN ACCESS SHARE MODE")  # as pg_dump has it until its end
        store.write(line("after"))
        store.flush()
        assert told(metadb_url) == ["after"]
    assert run_sql(metadb_url, DAYS) == [[today]]


def test_a_day_takes_no_more_than_it_may(metadb_url: str) -> None:
    config = replace(CONFIG, max_bytes=Bytes(1 << 20))
    with closing(LogStore(MetaDBConfig(url=metadb_url), config)) as store:

        def full() -> bool:
            store.write("".join(line("x" * 1000) for _ in range(500)))
            store.flush()
            return store.dropped > 0

        eventually(full, "the day is full")
        assert "log.max_bytes" in store.why


def test_while_metadb_is_away_lines_wait_and_then_are_dropped_and_counted(
    metadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics.share()
    monkeypatch.setattr(log_store, "MOST_LINES", 5)
    monkeypatch.setattr(log_store, "_FLUSH_S", 0.01)
    monkeypatch.setattr(log_store, "_LIMIT_S", 0.1)
    away = MetaDBConfig(url="postgresql://distfs@127.0.0.1:1/distfs", patience=Seconds(0.1))
    with closing(LogStore(away, CONFIG)) as store:
        store.write(line("tried"))
        eventually(lambda: store.why != "", "it was tried")
        assert store.write("".join(line(f"{number}") for number in range(8))) == 0
        assert store.dropped == 3
        assert metrics.LOG_DROPPED.value() == 3
        assert "MetaDB" in store.why
    with closing(LogStore(MetaDBConfig(url=metadb_url), CONFIG)) as store:
        store.write(line("x" * 100_000))
        assert store.dropped == 1, "no line may be so long"
        assert store.write(line("short")) == 1, "it is told once"


def test_a_metadb_that_comes_back_gets_what_has_waited(
    metadb_url: str, store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_store, "_LIMIT_S", 1.0)
    run_sql(metadb_url, "ALTER FUNCTION log_add RENAME TO gone")
    store.write(line("waited"))
    eventually(lambda: "log_add" in store.why, "it was tried in vain")
    run_sql(metadb_url, "ALTER FUNCTION gone RENAME TO log_add")
    eventually(lambda: told(metadb_url) == ["waited"], "it is told")
    assert store.dropped == 0


def test_what_a_process_logs_comes_there(metadb_url: str) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    config = Config(metadb=MetaDBConfig(url=metadb_url), log=CONFIG)
    try:
        setup_logging(config.log, io.StringIO(), aside=True, file="node7", store=log_store.log_store(config))
        enter_request("r-9")
        log.warning("fragment %s on node %d: %s", "s.1", 3, "bad")
        flush_log()
        [found] = stored(config.metadb, Wanted(request="r-9"), None, Deadline(60))
        assert (found[2]["part"], found[2]["event"], found[2]["node"]) == ("node7", "fragment.bad", 3)
    finally:
        setup_logging(LogConfig(), io.StringIO())
        root.handlers[:], root.level = handlers, level
        leave_request()
    assert log_store.log_store(Config()) is None


@pytest.mark.parametrize(
    ("role", "writes", "reads"),
    [
        ("distfs_service", True, True),
        ("distfs_upkeep", True, True),
        ("distfs_readonly", False, True),
        ("distfs_node", True, False),
    ],
)
def test_parts_may_add_lines_and_operators_read_them(
    metadb_url: str, tmp_path: Path, role: str, writes: bool, reads: bool
) -> None:
    with closing(MetaDB(MetaDBConfig(url=metadb_url))) as owner:
        owner.migrate(tmp_path / "roles")
    as_it = as_role(metadb_url, role)
    with closing(LogStore(MetaDBConfig(url=as_it), CONFIG)) as store:
        store.write(line("mine"))
        if writes:
            store.flush()
            assert told(metadb_url) == ["mine"]
        else:
            eventually(lambda: "permission denied" in store.why, "it may not")
    with contextlib.nullcontext() if reads else pytest.raises(Exception, match="permission denied"):
        told(as_it)
    with pytest.raises(Exception, match="permission denied"):
        run_sql(as_it, "DELETE FROM log_line")
