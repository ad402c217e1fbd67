"""What is counted: by fixed labels, by all processes together, and told in Prometheus' words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as families

from distfs.config.settings import Config, LogConfig, MetricsConfig
from distfs.errors import BadToken, Busy, TooMany, Unsupported
from distfs.formats.wire import Type
from distfs.http_app import _ROUTE_OF, HttpApp, create_app
from distfs.process.log_writer import MOST_LINES, LineWriter
from distfs.telemetry import metrics
from distfs.telemetry.log_files import LogFile
from distfs.telemetry.metrics_page import page
from distfs.telemetry.metrics_told import rendered
from tests.unit.test_http_app import call

ROOT = Path(__file__).resolve().parents[2]
REQUEST = ("/download/<uuid>", "GET", 200, 0, 4096, 0.004)


@pytest.fixture(autouse=True)
def counted_anew() -> Iterator[None]:
    metrics.share()
    yield
    metrics.share()


def told() -> dict[str, float]:
    """By name and labels, as in the text."""
    _, data = rendered("", [])
    return {
        f"{s.name}{{{','.join(f'{k}={v}' for k, v in sorted(s.labels.items()))}}}": s.value
        for family in families(data.decode())
        for s in family.samples
    }


def test_a_request_is_counted_by_route_method_and_class_of_status() -> None:
    metrics.answered(*REQUEST)
    said = told()
    by = "{code=2xx,method=GET,route=/download/<uuid>}"
    assert said[f"distfs_http_requests_total{by}"] == 1
    assert said[f"distfs_http_sent_bytes_total{by}"] == 4096
    buckets = {k: v for k, v in said.items() if "request_seconds_bucket" in k}
    assert [le for le in buckets if "le=0.0025," in le and buckets[le] == 0]
    assert [le for le in buckets if "le=0.005," in le and buckets[le] == 1]
    assert [le for le in buckets if "le=+Inf," in le and buckets[le] == 1]
    assert said["distfs_http_request_seconds_sum{route=/download/<uuid>}"] == 0.004


def test_threads_lose_no_count() -> None:
    def count() -> None:
        for _ in range(5000):
            metrics.answered(*REQUEST)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert told()["distfs_http_requests_total{code=2xx,method=GET,route=/download/<uuid>}"] == 20000


def test_processes_are_added_up_and_one_that_is_killed_takes_nothing_with_it() -> None:
    metrics.share(2)
    if not (pid := os.fork()):
        metrics.mine(1)
        metrics.IN_FLIGHT.add(3)
        metrics.answered(*REQUEST)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    metrics.answered(*REQUEST)
    total = "distfs_http_requests_total{code=2xx,method=GET,route=/download/<uuid>}"
    assert told()[total] == 2
    metrics.forget(1)
    assert told()[total] == 2
    assert told()["distfs_http_requests_in_flight{}"] == -1  # this one's, which never began


def test_no_path_method_or_status_makes_a_new_series() -> None:
    with closing(create_app(Config())) as app:
        for number in range(20):
            ask(app, f"/{number}", f"M{number}")
        before = of_requests()
        for number in range(20_000):
            ask(app, f"/x{number}", f"X{number}")
        assert of_requests() == before
    metrics.answered("/", "GET", 999, 0, 0, 0.1)
    metrics.answered("/", "GET", 0, 0, 0, 0.1)


def of_requests() -> set[str]:
    """Of others, what is told of MetaDB and of nodes may come and go meanwhile."""
    return {key for key in told() if key.startswith("distfs_http_")}


def ask(app: HttpApp, path: str, method: str) -> None:
    call(app, PATH_INFO=path, REQUEST_METHOD=method)


def test_nothing_stays_in_flight() -> None:
    with closing(create_app(Config())) as app:
        for path in ("/healthz", "/nowhere", "/files/x"):
            ask(app, path, "GET")
        with pytest.raises(KeyError):
            app({}, lambda *_: lambda data: None)
    assert told()["distfs_http_requests_in_flight{}"] == 0


def test_nothing_is_counted_where_metrics_are_off() -> None:
    with closing(create_app(Config(metrics=MetricsConfig(enabled=False)))) as app:
        ask(app, "/healthz", "GET")
    assert not [key for key in told() if key.startswith("distfs_http_requests_total")]


def test_errors_are_counted_by_kind() -> None:
    for error in (TooMany("x"), Busy("x"), BadToken("x"), ValueError("x")):
        metrics.failed(error)
    said = told()
    for kind in ("too_many", "busy", "unauthorized", "internal"):
        assert said[f"distfs_http_errors_total{{kind={kind}}}"] == 1


def test_who_asks_for_openmetrics_gets_it() -> None:
    metrics.answered(*REQUEST)
    kind, data = rendered("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", [])
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert any(f.name == "distfs_http_requests" for f in open_families(data.decode()))  # type: ignore[no-untyped-call]
    kind, data = rendered("text/plain;version=0.0.4", [])
    assert kind.startswith("text/plain; version=0.0.4")


def test_the_routes_are_those_of_the_app() -> None:
    assert {*_ROUTE_OF.values(), metrics.OTHER} == set(metrics.ROUTES)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(Unsupported, match=r"pip install 'distfs\[metrics\]'"):
        rendered("", [])


def test_the_library_is_known_in_one_place() -> None:
    knows = [
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "distfs").rglob("*.py")
        if re.search(r"(from|import) prometheus_client", p.read_text("utf-8"))
    ]
    assert knows == ["distfs/telemetry/metrics_told.py"]


def test_the_page_lists_what_there_is() -> None:
    assert (ROOT / "docs/metrics.md").read_text("utf-8") == page(), "make docs"


def test_the_types_are_those_of_the_wire() -> None:
    asked = {each.name for each in Type if each < Type.OK} - {"CELL", "END", "NAME"}
    assert asked | {metrics.OTHER} == set(metrics.TYPES)


def test_names_keep_prometheus_conventions() -> None:
    for metric in metrics.METRICS:
        assert re.fullmatch(r"distfs_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == metrics.COUNTER), metric.name
        assert metric.meaning.endswith("."), metric.name
        assert metric.first < 0 or all(metric.labels.values()), metric.name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool_finds_nothing() -> None:
    metrics.answered(*REQUEST)
    looked_at = [metrics.Sample(m, 1, tuple("x" for _ in m.labels)) for m in metrics.METRICS if m.first < 0]
    for part in (metrics.SERVICE, metrics.NODE):
        _, data = rendered("", looked_at, part)
        done = subprocess.run(["promtool", "check", "metrics"], input=data, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_a_line_that_is_dropped_is_counted_though_its_process_is_killed(tmp_path: Path) -> None:
    metrics.share(2)
    if not (pid := os.fork()):
        metrics.mine(1)
        (tmp_path / "file").write_text("")
        kept = LogFile(LogConfig(dir=str(tmp_path / "file" / "folder")), "x", aside=False)
        kept.write("one\ntwo\n")
        writer = LineWriter(StringIO(), str, lost=metrics.LOG_DROPPED.add)
        writer._waking = True  # nobody writes
        for _ in range(MOST_LINES + 3):
            writer.add(("x\n", "x\n"))
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert told()["distfs_log_dropped_lines_total{}"] == 2 + 3
    metrics.forget(1)
    assert told()["distfs_log_dropped_lines_total{}"] == 2 + 3


def test_nodes_beyond_those_that_are_known_are_counted_together() -> None:
    for number in (1, 1023, 1024, 5000, 0, -3):
        metrics.NODE_SENT.add(1, metrics.node_at(number))
    said = {k: v for k, v in told().items() if k.startswith("distfs_node_sent_bytes_total")}
    assert said == {
        "distfs_node_sent_bytes_total{node=1}": 1,
        "distfs_node_sent_bytes_total{node=1023}": 1,
        "distfs_node_sent_bytes_total{node=other}": 4,
    }
