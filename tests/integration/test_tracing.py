"""Traces of real requests, as a real receiver gets them: one tree over service, nodes and MetaDB."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from werkzeug.test import EnvironBuilder

from distfs.config.settings import Config, Fraction, PeersConfig, Portion, Seconds, TracingConfig
from distfs.deadline import Deadline
from distfs.http_app import create_app
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.model import Policy
from distfs.telemetry import metrics, tracing
from distfs.upkeep.step import traced_step
from tests.contract.litter import eventually
from tests.integration.upkeep_cluster import UpkeepCluster, bytes_of
from tests.otlp import ROOT, Collector, Span, assert_one_tree, below, collector, takes_it
from tests.postgres import databases, run_sql
from tests.service import TestService, _wait_for_nodes, listening, running_node, running_service, small_config

SPAN = "00f067aa0ba902b7"
NEVER = Seconds(1e6)


@pytest.fixture(scope="module")
def running_collector() -> Iterator[Collector]:
    with collector() as running:
        yield running


def traced_config(url: str, endpoint: str, ratio: float = 0, slow: Seconds = NEVER) -> Config:
    """``ratio`` 0, and nothing is slow: only what somebody asks for, or fails."""
    return replace(small_config(url), tracing=TracingConfig(endpoint, Portion(ratio), slow))


@pytest.fixture(scope="module")
def service(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory, running_collector: Collector
) -> Iterator[TestService]:
    with databases(postgres) as make:
        config = traced_config(make("migrated"), running_collector.url)
        with running_service(config, tmp_path_factory.mktemp("traced")) as running:
            yield running


@pytest.fixture
def endpoint(running_collector: Collector) -> Iterator[Collector]:
    """Of this test alone."""
    running_collector.answer = takes_it
    running_collector.spans.clear()
    metrics.share()
    tracing.set_up(TracingConfig(running_collector.url, Portion(0), NEVER), "")
    yield running_collector
    tracing.close()


def asked() -> tuple[str, dict[str, str]]:
    """A trace's id, and the header of who wants to see it."""
    id = uuid4().hex
    return id, {"traceparent": f"00-{id}-{SPAN}-01"}


def sent_in(endpoint: Collector, id: str) -> list[Span]:
    """Transfers of fragments to nodes, of a trace, as the service tells of them."""
    return [s for s in endpoint.trace(id) if s.name in ("PUT", "WHOLE") and s.kind == 3]


def stored_in(endpoint: Collector, id: str) -> list[Span]:
    """The same, as nodes do."""
    return [s for s in endpoint.trace(id) if s.name in ("PUT", "WHOLE") and s.kind == 2]


@pytest.mark.parametrize("data", [b"small", bytes(700_000)], ids=["small", "of several slices"])
def test_an_upload_is_one_tree_over_service_nodes_and_metadb(
    data: bytes, service: TestService, endpoint: Collector
) -> None:
    for _ in range(10):  # there are connections to all nodes then
        assert service.ask("PUT", "/upload/x", data).status == 201
    id, header = asked()
    answer = service.ask("PUT", "/upload/a%0Ab", data, header | {"tracestate": "vendor=1"})
    assert answer.status == 201
    endpoint.awaited(id, {"PUT /upload/<name>"})
    # A node ends its span when it has answered.
    eventually(lambda: len(stored_in(endpoint, id)) == len(sent_in(endpoint, id)), "each node has told of it")
    spans = endpoint.trace(id)
    root = assert_one_tree(spans, SPAN)
    assert (root.kind, root.failed) == (2, False)
    assert root.facts["http.request.method"] == "PUT"
    assert root.facts["url.path"] == "/upload/a\\nb", "on one line"
    assert root.facts["http.response.status_code"] == 201
    assert root.facts["http.request.body.size"] == len(data)
    assert root.facts["distfs.request_id"] == answer.headers["X-Request-Id"]
    assert below(spans, root.name) >= {"admit", "place", "commit", "receive body"}
    assert below(spans, "commit") == {"commit_file"}
    [statement] = [s for s in spans if s.name == "commit_file"]
    assert (statement.facts["db.system.name"], statement.kind) == ("postgresql", 3)
    assert int(statement.facts["distfs.metadb.pid"]) > 0
    sent, stored = sent_in(endpoint, id), stored_in(endpoint, id)
    # A small one goes whole by a connection that was used just now: on a busy machine there may be none.
    assert {s.name for s in sent} <= ({"PUT"} if len(data) > 100 else {"PUT", "WHOLE"})
    assert {s.parent for s in stored} == {s.id for s in sent}, "each node's is below that of its transfer"
    assert {s.facts["distfs.fragment"] for s in stored} == {s.facts["distfs.fragment"] for s in sent}
    assert len({s.facts["distfs.node"] for s in stored}) >= 2
    assert {s.name for s in spans if s.parent in {s.id for s in stored}} >= {"write and fsync", "publish"}
    assert {s.resource["service.name"] for s in spans} == {"distfs"}
    assert {s.state for s in spans if s not in stored and s.parent not in {each.id for each in stored}} == {
        "vendor=1"
    }
    assert set(endpoint.paths) == {"/v1/traces"}


def test_a_trace_is_sent_for_its_error_its_slowness_or_by_lot(
    service: TestService, endpoint: Collector, metadb_url: str
) -> None:
    not_looked_at = {"traceparent": f"00-{uuid4().hex}-{SPAN}-00"}
    assert service.ask("GET", "/files", headers=not_looked_at).status == 200
    id = uuid4().hex
    broken = {"traceparent": f"00-{id}-{SPAN}-00"}
    app = create_app(
        replace(
            traced_config("postgresql://nobody@127.0.0.1:1/x", endpoint.url),
            metadb=replace(
                service.config.metadb, url="postgresql://nobody@127.0.0.1:1/x", patience=Seconds(0)
            ),
        )
    )
    with ExitStack() as stack:
        stack.callback(app.close)
        host, port = stack.enter_context(listening(app, service.config))
        there = replace(service, host=host, port=port)
        assert there.ask("GET", f"/download/{uuid4()}", headers=broken).status == 503
        [root] = [s for s in endpoint.awaited(id, {"GET /download/<uuid>"}) if s.parent == SPAN]
        waits = [s for s in endpoint.trace(id) if s.name == "wait for a connection"]
        assert waits
        assert all(s.failed and s.facts["error.type"] == "unavailable" for s in waits)
        assert (root.facts["error.type"], root.facts["http.response.status_code"]) == ("503", 503)
        for slow, ratio in ((Seconds(0), 0.0), (NEVER, 1.0)):
            tracing.set_up(TracingConfig(endpoint.url, Portion(ratio), slow), "")
            before = len(endpoint.spans)
            assert there.ask("GET", "/healthz").status == 200
            eventually(lambda: endpoint.spans[before:], "it is sent")  # noqa: B023
            assert [(s.name, s.parent) for s in endpoint.spans[before:] if s.kind == 2] == [
                ("GET /healthz", ROOT)
            ]
    assert not endpoint.trace(not_looked_at["traceparent"][3:35])


class Holding:
    """A node's store that lets nobody read until it is told so."""

    def __init__(self, store: Any) -> None:
        self._store, self.go_on, self.held = store, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, *args: Any, **kwargs: Any) -> Any:
        self.held.set()
        self.go_on.wait(60)
        return self._store.get(*args, **kwargs)


def test_a_download_with_a_hedge_is_one_tree(metadb_url: str, tmp_path: Path, endpoint: Collector) -> None:
    config = traced_config(metadb_url, endpoint.url)
    config = replace(config, peers=PeersConfig(hedge_min=Seconds(0.02), hedge_budget=Fraction(1)))
    with ExitStack() as stack:
        nodes = [stack.enter_context(running_node(tmp_path / f"n{i}", config)) for i in range(2)]
        app = create_app(config)
        stack.callback(app.close)
        _wait_for_nodes(config, 2)
        host, port = stack.enter_context(listening(app, config))
        there = TestService(host, port, app, config, ())
        data = bytes(range(256)) * 1000
        uuid = there.ask("PUT", "/upload/x", data).text.strip()
        for _ in range(5):
            assert there.ask("GET", f"/download/{uuid}").body == data
        id, header = asked()
        holding = Holding(nodes[0].store)
        other = Holding(nodes[1].store)
        other.go_on.set()
        nodes[0].store, nodes[1].store = holding, other  # type: ignore[assignment]
        app.services.directory.close()  # connections know the store that there was
        stack.callback(holding.go_on.set)
        for _ in range(10):  # the other may be preferred
            assert there.ask("GET", f"/download/{uuid}", headers=header).body == data
            if holding.held.is_set():
                break
            id, header = asked()
            uuid = there.ask("PUT", "/upload/x", data).text.strip()
        assert holding.held.is_set()
        holding.go_on.set()
        spans = endpoint.awaited(id, {"GET /download/<uuid>", "file", "hedge", "GET"})
        root = assert_one_tree(spans, SPAN)
        assert root.facts["http.response.body.size"] == len(data)
        assert "GET" in below(spans, "hedge")
        late = [s for s in spans if s.name == "GET" and s.kind == 3 and "distfs.given_up" in s.facts]
        assert late, "the one that was outrun"


def test_a_repair_and_a_decoding_are_told(metadb_url: str, tmp_path: Path, endpoint: Collector) -> None:
    tracing.set_up(TracingConfig(endpoint.url, Portion(1), NEVER), "")
    with UpkeepCluster(tmp_path, metadb_url, nodes=4) as cluster:
        file = cluster.upload(bytes_of(1), Policy(2, 1))
        lost = cluster.stop_node(cluster.node(cluster.file(file).slices[0].nodes[0]))
        traced_step(cluster.repair(), Deadline(60))
        assert lost not in cluster.file(file).slices[0].nodes
        traced_step(cluster.orphans(), Deadline(60))
        told = ("upkeep repair", "upkeep orphans", "write and fsync")
        eventually(lambda: set(told) <= {s.name for s in endpoint.spans}, "all is sent")
    [root] = [s for s in endpoint.spans if s.name == "upkeep repair"]
    spans = endpoint.trace(root.trace)
    assert_one_tree(spans)
    assert below(spans, root.name) >= {"repair"}
    assert below(spans, "repair") >= {"GET", "PUT", "decode", "move_fragment"}
    eventually(lambda: "write and fsync" in {s.name for s in endpoint.trace(root.trace)}, "the node's, too")
    [sweep] = [s for s in endpoint.spans if s.name == "upkeep orphans"]
    assert "sweep" in below(endpoint.trace(sweep.trace), sweep.name)

    def asked_of_nodes() -> list[Span]:
        return [s for s in endpoint.trace(sweep.trace) if s.name in ("INFO", "LIST")]

    eventually(lambda: {s.kind for s in asked_of_nodes()} == {2, 3}, "service and node tell of it")
    sent = {s.id for s in asked_of_nodes() if s.kind == 3}
    assert {s.parent for s in asked_of_nodes() if s.kind == 2} <= sent


HOSTILE = (
    *("", "00", "00-" + "0" * 32 + f"-{SPAN}-01", "00-" + "a" * 32 + "-" + "0" * 16 + "-01"),
    *("ff-" + "a" * 32 + f"-{SPAN}-01", "00-" + "A" * 32 + f"-{SPAN}-01", "00-" + "a" * 32 + f"-{SPAN}-01-x"),
    *("00-" + "a" * 31 + "\u0661" + f"-{SPAN}-01", "x" * 8000, "00-" + "a" * 32 + f"-{SPAN}-0", "'; DROP"),
)


def test_what_is_no_traceparent_is_ignored(service: TestService, endpoint: Collector) -> None:
    tracing.set_up(TracingConfig(endpoint.url, Portion(1), NEVER), "")
    for header in HOSTILE:
        headers = {"traceparent": header.encode("utf-8").decode("latin-1")}
        assert service.ask("GET", "/healthz", headers=headers).status == 200
    eventually(lambda: len(endpoint.spans) >= len(HOSTILE), "all are sent")
    roots = [s for s in endpoint.spans if s.name == "GET /healthz"]
    assert [s.parent for s in roots] == [ROOT] * len(HOSTILE)
    assert len({s.trace for s in roots}) == len(HOSTILE)


def _slow(asked: BaseHTTPRequestHandler) -> None:
    threading.Event().wait(3)


def _refuses(asked: BaseHTTPRequestHandler) -> None:
    asked.send_error(400, "no\x1b[31m")


def _redirects(asked: BaseHTTPRequestHandler) -> None:
    asked.send_response(302)
    asked.send_header("Location", "/elsewhere")
    asked.send_header("Content-Length", "0")
    asked.end_headers()


def _lies(asked: BaseHTTPRequestHandler) -> None:
    asked.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
    for _ in range(100):
        asked.wfile.write(b"\xff" * 65536)


@pytest.mark.parametrize("answer", [None, _slow, _refuses, _redirects, _lies])
def test_an_endpoint_that_is_bad_fails_no_request(
    answer: Any,
    service: TestService,
    endpoint: Collector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracing, "MOST_WAITING", 50)
    monkeypatch.setattr(tracing, "_SEND_LIMIT_S", 0.3)
    monkeypatch.setattr(tracing, "_CLOSE_LIMIT_S", 0.1)
    endpoint.answer = answer
    url = endpoint.url if answer else "http://me:hidden@127.0.0.1:1"
    metrics.share()
    tracing.set_up(TracingConfig(url, Portion(1), NEVER), "")
    for _ in range(100):
        assert service.ask("GET", "/files").status == 200
    tracing.close()
    if answer is not _lies:
        lost = metrics.SPANS_DROPPED.first
        assert metrics._cells[lost] > 0, "counted"
        said: list[str] = []

        def told() -> bool:
            said[:] = [r.getMessage() for r in caplog.records if r.name == "distfs.tracing"]
            return bool(said)

        eventually(told, "it is said")
        assert [text[:16] for text in said] == ["spans are lost: "], "once"
        assert "hidden" not in said[0]
        assert said[0].isprintable()


def test_where_it_is_off_nothing_is_recorded(metadb_url: str, tmp_path: Path) -> None:
    with running_service(small_config(metadb_url), tmp_path) as service:
        _, header = asked()
        answer = service.ask("PUT", "/upload/x", b"x", {**header, "X-Distfs-Timing": "1"})
        assert (answer.status, answer.headers["Server-Timing"]) == (201, None)
        assert (tracing.on, tracing.current()) == (False, None)
        eventually(lambda: tracing._open == 0, "what was recorded before is forgotten")


def test_server_timing_is_told_who_asks(metadb_url: str, tmp_path: Path) -> None:
    config = replace(small_config(metadb_url), tracing=TracingConfig(server_timing=True))
    with running_service(config, tmp_path) as service:
        began = time.monotonic()
        answer = service.ask("PUT", "/upload/x", b"x", {"X-Distfs-Timing": "1"})
        most = (time.monotonic() - began) * 1000
        told = dict(each.split(";dur=") for each in answer.headers["Server-Timing"].split(", "))
        assert list(told) == ["queue", "metadata", "nodes", "total"]
        assert 0 < float(told["metadata"]) <= float(told["total"]) <= most
        assert 0 < float(told["nodes"]) <= float(told["total"])
        assert service.ask("GET", "/files").headers["Server-Timing"] is None
    eventually(lambda: tracing._open == 0, "nothing is kept")


def test_a_bucket_shows_the_last_trace_that_was_sent(service: TestService, endpoint: Collector) -> None:
    id, header = asked()
    assert service.ask("GET", "/files", headers=header).status == 200
    assert service.ask("GET", "/files").status == 200
    endpoint.awaited(id, {"GET /files"})
    openmetrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
    shown: list[str] = []

    def told() -> bool:
        text = service.ask("GET", "/metrics", headers=openmetrics).text
        shown[:] = [line for line in text.splitlines() if "trace_id" in line]
        return bool(shown)

    eventually(told, "a bucket has an exemplar")
    [line] = shown
    assert line.startswith("distfs_http_request_seconds_bucket{")
    assert f'# {{trace_id="{id}"}} ' in line
    assert "trace_id" not in service.ask("GET", "/metrics").text


def test_a_request_that_ends_before_its_answer_begins_keeps_nothing(
    service: TestService, endpoint: Collector
) -> None:
    def refuse(*args: object) -> Any:
        raise OSError("the host is gone")

    environ = EnvironBuilder("/healthz").get_environ()
    with pytest.raises(OSError, match="the host is gone"):
        service.app(environ, refuse)
    assert tracing.current() is None
    eventually(lambda: tracing._open == 0, "its spans are forgotten")


def test_spans_are_bounded_in_each_trace_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    eventually(lambda: tracing._open == 0, "what was recorded before is forgotten")
    metrics.share()
    tracing.set_up(TracingConfig(server_timing=True), "")
    try:
        monkeypatch.setattr(tracing, "MOST_OF_TRACE", 10)
        monkeypatch.setattr(tracing, "MOST_OPEN", 15)
        roots = [tracing.enter("x", tracing.SERVER, None, {}) for _ in range(2)]
        for root in roots:
            with root:
                for _ in range(20):
                    tracing.past("part", time.monotonic(), {})
        assert [len(root.trace.spans) for root in roots] == [10, 5]
        assert metrics._cells[metrics.SPANS_DROPPED.first] == 42 - 15
        for root in roots:
            tracing.leave(root)
        assert tracing._open == 0
    finally:
        tracing.close()


def test_a_statement_of_a_trace_that_is_sent_says_so_to_metadb(
    service: TestService, endpoint: Collector
) -> None:
    """As `pg_stat_activity` and PostgreSQL's log show it."""
    uuid = service.ask("PUT", "/upload/x", b"x").text.strip()
    shown = "SELECT query FROM pg_stat_activity WHERE query LIKE '%traceparent%' AND pid <> pg_backend_pid()"
    id, header = asked()
    prepared = "SELECT count(*) FROM pg_prepared_statements"
    meta = service.app.services.meta
    for _ in range(3):
        assert service.ask("DELETE", f"/files/{uuid}", headers=header).status in (200, 204, 404)
        assert service.ask("GET", f"/files/{uuid}", headers=header).status == 404
    told = [str(row[0]) for row in run_sql(service.config.metadb.url, shown)]
    [spans] = [[s for s in endpoint.awaited(id, {"GET /files/<uuid>"}) if "db.system.name" in s.facts]]
    assert any(f"traceparent='00-{id}-" in text for text in told), told
    assert any(span.parent in text for text in told for span in spans), "below the span that asked"
    with meta._pool.link(Deadline(10)) as link:
        [[count]] = link.raw.run(prepared)
        assert count == len(link._statements), "none is kept by the server"


def test_a_statement_that_nobody_looks_at_is_prepared_once(service: TestService, endpoint: Collector) -> None:
    id = uuid4().hex
    assert (
        service.ask("GET", f"/files/{uuid4()}", headers={"traceparent": f"00-{id}-{SPAN}-00"}).status == 404
    )
    shown = "SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    assert not [query for [query] in run_sql(service.config.metadb.url, shown) if id in str(query)]
