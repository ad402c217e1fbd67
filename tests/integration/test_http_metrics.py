"""GET /metrics of a real service: what it tells, whom, and how it bears those who ask."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from distfs.config.settings import MetricsConfig
from distfs.deadline import Deadline
from distfs.http_app import create_app
from distfs.storage.metrics_port import node_samples
from distfs.storage.strangers import Strangers
from distfs.telemetry import history, metrics
from distfs.upkeep.db import UpkeepDB
from tests.certificates import Certificates, at
from tests.contract.litter import eventually
from tests.contract.nodes import new_store
from tests.integration.guarded import guarded_config, user
from tests.postgres import run_sql
from tests.service import BLOCK, HttpAddress, TestService, listening, running_service, small_config
from tests.unit.test_http_app import call


def told(service: HttpAddress, **labels: str) -> dict[str, float]:
    """Sums by name, of the series with these labels."""
    answer = service.ask("GET", "/metrics")
    assert answer.status == 200, answer.text
    found: dict[str, float] = {}
    for family in families(answer.text):
        for sample in family.samples:
            if labels.items() <= sample.labels.items():
                found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


@pytest.fixture
def service(metadb_url: str, tmp_path: Path) -> Iterator[TestService]:
    metrics.share()
    with running_service(small_config(metadb_url), tmp_path) as running:
        yield running


def test_a_scrape_tells_of_requests_memory_and_nodes(service: TestService) -> None:
    data = os.urandom(100_000)
    uuid = service.ask("PUT", "/upload/x", data).text.strip()
    assert service.ask("GET", f"/download/{uuid}").body == data
    assert service.ask("GET", "/download/x").status == 400

    def counted() -> bool:  # an answer is counted when it is over, which is a moment after it came
        up, down = told(service, route="/upload/<name>"), told(service, route="/download/<uuid>")
        return (
            up["distfs_http_received_bytes_total"] == len(data)
            and down["distfs_http_requests_total"] == 2
            and down["distfs_http_sent_bytes_total"] > len(data)
            and down["distfs_http_request_seconds_count"] == 2
        )

    eventually(counted, "three requests are told of")
    assert told(service, kind="refused")["distfs_http_errors_total"] == 1
    assert told(service)["distfs_node_sent_bytes_total"] > 2 * len(data), "two copies"
    assert told(service)["distfs_node_received_bytes_total"] > len(data)
    assert told(service)["distfs_node_read_seconds_count"] > 0
    assert told(service)["distfs_http_connections"] >= 1
    all_ = told(service)
    assert all_["distfs_http_requests_in_flight"] == 1  # the scrape
    assert (all_["distfs_node_up"], all_["distfs_processes"]) == (3, 1)
    assert all_["distfs_node_free_bytes"] > 0
    assert all_["distfs_memory_limit_bytes"] == service.config.storage.memory_budget
    assert service.ask("HEAD", "/metrics").status == 200


def test_an_administrator_reads_them_or_everybody(metadb_url: str, tmp_path: Path) -> None:
    config = guarded_config(metadb_url)
    with running_service(config, tmp_path / "a") as service:
        assert service.ask("GET", "/metrics").status == 401
        assert service.ask("HEAD", "/metrics").status == 401
        assert user(service, "somebody").ask("GET", "/metrics").status == 403
        assert user(service, "admin", ["admin"]).ask("GET", "/metrics").status == 200
        app = create_app(replace(config, metrics=MetricsConfig(public=True)))
        with closing(app), listening(app, config) as (host, port):
            assert HttpAddress(host, port).ask("GET", "/metrics").status == 200
            assert HttpAddress(host, port).ask("GET", "/status").status == 401


def test_where_they_are_off_there_are_none(metadb_url: str, tmp_path: Path) -> None:
    config = replace(small_config(metadb_url), metrics=MetricsConfig(enabled=False))
    with running_service(config, tmp_path) as service:
        answer = service.ask("GET", "/metrics")
        assert (answer.status, "metrics.enabled" in answer.text) == (404, True)


def test_without_the_library_one_line_says_what_to_install(
    service: TestService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    answer = service.ask("GET", "/metrics")
    assert (answer.status, len(answer.text.splitlines())) == (501, 1)
    assert "pip install 'distfs[metrics]'" in answer.text
    assert service.ask("GET", "/healthz").status == 200


def test_a_hundred_scrapes_at_once_and_a_slow_one_are_borne(service: TestService) -> None:
    with socket.create_connection((service.host, service.port)) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")  # and nothing is read
        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(lambda _: service.ask("GET", "/metrics"), range(100)))
        assert {answer.status for answer in answers} <= {200, 429}
        assert all(
            answer.whole and b"distfs_build_info" in answer.body for answer in answers if answer.status == 200
        )
        assert any(answer.status == 200 for answer in answers)
        assert service.ask("PUT", "/upload/x", b"x").status == 201


def test_metrics_are_told_while_metadb_is_away(service: TestService, metadb_url: str) -> None:
    service.app.services.meta.close()
    assert told(service)["distfs_processes"] == 1


def test_a_scrape_tells_of_the_cluster_without_waiting_for_metadb(service: TestService) -> None:
    before = told(service)
    assert (
        "distfs_metadb_clock_offset_seconds" not in before or before["distfs_cluster_facts_age_seconds"] < 60
    )
    assert service.ask("PUT", "/upload/x", bytes(1000)).status == 201
    eventually(lambda: "distfs_cluster_facts_age_seconds" in told(service), "somebody has looked")
    said = told(service)
    assert abs(said["distfs_metadb_clock_offset_seconds"]) < 60  # one machine
    assert said["distfs_slices_lacking"] == said["distfs_fragments_lacking"] == 0
    assert (said["distfs_metadb_up"], said["distfs_fragments_damaged"]) == (1, 0)
    assert said["distfs_metadb_statement_seconds_count"] > 0
    assert said["distfs_node_connections"] > 0
    assert 0 <= said["distfs_node_latency_seconds"] < 60  # of reads, and there were none


def test_what_is_lost_with_a_node_is_told_by_what_is_left(service: TestService) -> None:
    service.app.services.facts._due = float("inf")  # not before it is lost
    uuid = UUID(service.ask("PUT", "/upload/x", bytes(1000)).text.strip())
    db, deadline = UpkeepDB(service.app.services.meta), Deadline(60)
    [slice_] = service.app.services.meta.file(uuid, deadline).slices
    assert db.note_damage(slice_.id, 0, slice_.nodes[0], "a test", deadline)
    assert db.note_damage(slice_.id, 0, slice_.nodes[0], "a test", deadline)
    save = {"fragments": 3, "stuck": "a reason"}
    db.save_worker("repair", "busy", save, deadline)
    service.app.services.facts._due = 0.0
    eventually(lambda: told(service).get("distfs_fragments_damaged") == 1, "somebody has looked")
    assert told(service, redundancy_left="0")["distfs_slices_lacking"] == 1
    assert told(service)["distfs_fragments_lacking"] == 1
    assert told(service)["distfs_damaged_fragments_total"] == 1, "counted once, however often it is found"
    assert told(service, worker="repair")["distfs_upkeep_stuck"] == 1
    assert told(service, worker="repair", figure="fragments")["distfs_upkeep_figure"] == 3


def test_a_cluster_that_cannot_be_looked_at_is_looked_at_later(service: TestService) -> None:
    facts = service.app.services.facts
    service.app.services.meta.close()
    assert facts.last() is None
    eventually(lambda: not facts._looking, "that look has ended")
    assert facts._due > 0
    assert facts.last() is None


def test_what_the_host_refuses_is_counted_too(service: TestService) -> None:
    assert service.ask("GET", "/healthz", headers={"Host": "a b"}).status == 400
    eventually(lambda: told(service, kind="refused")["distfs_http_errors_total"] == 1, "it is told of")


def test_a_scrape_is_answered_while_the_service_ends(metadb_url: str, tmp_path: Path) -> None:
    with running_service(small_config(metadb_url), tmp_path) as running:
        assert running.app.answers_while_draining("/metrics")


def test_who_waits_for_a_thread_is_told_of(metadb_url: str, tmp_path: Path) -> None:
    metrics.share()
    config = small_config(metadb_url)
    config = replace(config, http=replace(config.http, threads=1))
    with running_service(config, tmp_path) as service, ThreadPoolExecutor(20) as pool:

        def some_waited() -> bool:
            answers = list(pool.map(lambda _: service.ask("GET", "/files"), range(20)))
            return {each.status for each in answers} == {200} and told(service)[
                "distfs_http_queue_seconds_count"
            ] > 0

        eventually(some_waited, "more came at once than there are threads")


def test_what_fails_its_check_is_counted(service: TestService) -> None:
    data = os.urandom(256_000)  # which no compression makes shorter
    uuid = service.ask("PUT", "/upload/x", data).text.strip()
    for path in service.fragments():  # one cell of each copy, and not of the same block
        damaged = bytearray(path.read_bytes())
        if len(damaged) > 3 * BLOCK:
            damaged[len(damaged) * (5 if path.name.endswith(".0") else 2) // 8] ^= 1
            path.write_bytes(damaged)
    for _ in range(20):  # whichever fragment is asked for
        assert service.ask("GET", f"/download/{uuid}").body == data
        if told(service, where="read")["distfs_checksum_failures_total"] > 0:
            break
    else:
        raise AssertionError("none of twenty reads met the damage")
    assert told(service, what="read")["distfs_retries_total"] > 0, "another was read"


def test_all_there_is_is_counted_now_and_then(service: TestService) -> None:
    """By what is left of it, by node, and with the trash."""
    service.app.services.inventory._due = float("inf")
    data = bytes(1000)
    kept, gone = (service.ask("PUT", "/upload/x", data).text.strip() for _ in range(2))
    assert service.ask("DELETE", f"/files/{gone}").status == 204
    service.app.services.inventory._due = 0.0
    eventually(lambda: "distfs_cluster_inventory_age_seconds" in told(service), "somebody has counted")
    said = told(service)
    assert (said["distfs_files"], said["distfs_files_bytes"]) == (1, 1000)
    assert (said["distfs_trash_files"], said["distfs_trash_bytes"]) == (1, 1000)
    assert told(service, redundancy_left="1")["distfs_slices"] == 1, "one copy more than it needs"
    assert said["distfs_node_fragments"] == 4, "two copies of each"
    db, deadline = UpkeepDB(service.app.services.meta), Deadline(60)
    [piece] = service.app.services.meta.file(UUID(kept), deadline).slices
    assert db.note_damage(piece.id, 0, piece.nodes[0], "a test", deadline)
    service.app.services.inventory._due = 0.0
    eventually(lambda: "distfs_slices" in told(service, redundancy_left="0"), "it is counted anew")
    assert "distfs_slices" not in told(service, redundancy_left="1")


def test_how_long_the_first_loss_waits_for_repair_is_told(service: TestService) -> None:
    meta, deadline = service.app.services.meta, Deadline(60)
    db = UpkeepDB(meta)
    assert db.oldest_loss(deadline) == 0
    uuid = UUID(service.ask("PUT", "/upload/x", bytes(1000)).text.strip())
    [piece] = meta.file(uuid, deadline).slices
    assert db.note_damage(piece.id, 0, piece.nodes[0], "a test", deadline)
    with meta._pool.link(deadline) as link:
        link.raw.run("UPDATE damage SET noted_at = noted_at - interval '1 hour'")
    assert 3600 <= db.oldest_loss(deadline) < 7200
    service.app.services.facts._due = 0.0
    eventually(lambda: told(service).get("distfs_oldest_loss_age_seconds", 0) >= 3600, "it is told")
    assert db.move_fragment(piece.id, 0, piece.nodes[0], piece.nodes[0], deadline)
    assert db.oldest_loss(deadline) == 0, "it is made anew"
    with meta._pool.link(deadline) as link:
        link.raw.run(
            "UPDATE node SET stopped = true, heartbeat_at = now() - interval '2 hours' WHERE id = :id",
            id=piece.nodes[0],
        )
        link.raw.run("UPDATE node SET secret_hash = sha256('x') WHERE id = :id", id=piece.nodes[0])
    assert db.oldest_loss(deadline) >= 7200, "of a node that is down and keeps something"


def test_bytes_and_failures_are_told_by_node(service: TestService) -> None:
    uuid = service.ask("PUT", "/upload/x", os.urandom(100_000)).text.strip()
    [*pieces] = service.app.services.meta.file(UUID(uuid), Deadline(60)).slices
    for node in {node for piece in pieces for node in piece.nodes}:
        assert told(service, node=str(node))["distfs_node_sent_bytes_total"] > 10_000
    assert service.ask("GET", f"/download/{uuid}").whole
    assert told(service)["distfs_node_received_bytes_total"] > 100_000
    assert told(service, node="other").get("distfs_node_received_bytes_total", 0) == 0


def test_a_node_is_measured_through_the_service(metadb_url: str, tmp_path: Path) -> None:
    """As the exporter of many targets does it: `?node=ID`."""
    metrics.share()
    with running_service(guarded_config(metadb_url), tmp_path) as service:
        admin = user(service, "admin", ["admin"])
        [node, *_] = (each.id for each in service.app.services.directory.nodes(Deadline(60)))
        answer = admin.ask("GET", f"/metrics?node={node}")
        assert answer.status == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        names = {family.name for family in families(answer.text)}
        assert {"distfs_disk_free_bytes", "distfs_storage_request_seconds", "distfs_threads"} <= names
        assert not {name for name in names if name.startswith("distfs_http")}
        answer = admin.ask(
            "GET", f"/metrics?node={node}", Accept="application/openmetrics-text;version=1.0.0"
        )
        assert answer.text.endswith("# EOF\n")
        for unknown in ("99", "x", f"0{node}", "", "-1"):
            assert admin.ask("GET", f"/metrics?node={unknown}").status == 404
        assert service.ask("GET", f"/metrics?node={node}").status == 401
        assert user(service, "somebody").ask("GET", f"/metrics?node={node}").status == 403


def test_threads_and_pools_are_told_of(service: TestService) -> None:
    assert service.ask("GET", "/files").status == 200
    said = told(service)
    assert said["distfs_threads"] > 5
    assert said["distfs_metadb_connections"] >= 1
    assert said["distfs_metadb_connections_limit"] == service.config.metadb.pool_size
    assert said["distfs_node_connections_limit"] == service.config.peers.max_connections
    eventually(lambda: told(service)["distfs_http_threads"] >= 1, "the loop has looked")
    assert told(service)["distfs_http_connections_waiting"] == 0


def test_connections_are_told_of_by_what_they_do(service: TestService) -> None:
    with ExitStack() as stack:
        for begun in (b"", b"GET /healthz HTTP/1.1\r\nHost: x"):
            sock = stack.enter_context(socket.create_connection((service.host, service.port)))
            sock.sendall(begun)

        def are(**states: int) -> bool:
            return all(
                told(service, state=state).get("distfs_http_connections_state", 0) >= count
                for state, count in states.items()
            )

        eventually(lambda: are(idle=1, receiving=1), "one says nothing, one is in its head")
    eventually(lambda: not are(receiving=1), "it has gone")


def test_a_node_tells_when_its_certificate_ends(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    store = new_store(tmp_path / "node")
    looked = node_samples(store, Strangers(), certificates.service("node").cert)
    [ends] = [sample.value for sample in looked if sample.metric is metrics.NODE_CERTIFICATE]
    assert ends > datetime.now(UTC).timestamp()
    assert metrics.NODE_CERTIFICATE not in [s.metric for s in node_samples(store, Strangers())]
    store.close()


def test_when_the_first_certificate_ends_is_told(metadb_url: str, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    later = certificates.service("later")
    with at(datetime.now(UTC) - timedelta(days=100)):
        sooner = certificates.service("sooner")
    config = replace(small_config(metadb_url), tls=certificates.https(later, sooner))
    with closing(create_app(config)) as app:
        text = call(app, PATH_INFO="/metrics").decode()
    [ends] = re.findall(r"^distfs_certificate_end_timestamp_seconds (\S+)$", text, re.MULTILINE)
    days = (float(ends) - datetime.now(UTC).timestamp()) / 86400
    assert 250 < days < 270, "a year from when the older one was signed"


def test_the_last_hour_is_told(service: TestService) -> None:
    assert service.ask("GET", "/status/history").status == 200
    service.ask("GET", "/healthz")

    def last_row() -> dict[str, Any]:
        service.app.services.history.add()
        told = json.loads(service.ask("GET", "/status/history").text)
        return dict(zip(told["columns"], told["rows"][-1], strict=True))

    assert last_row()["time"] > 0
    eventually(lambda: last_row()["nodes_up"] == 3, "the nodes are known")
    eventually(lambda: last_row()["requests"] >= 1, "what was asked is counted")
    assert service.ask("PUT", "/upload/x", b"x").status == 201
    eventually(
        lambda: last_row()["slices"] is not None, "who watches it has slices counted, without /metrics"
    )


def test_a_row_that_cannot_be_made_does_not_end_the_history(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.share()
    looks: list[bool] = []

    def look(watched: bool) -> tuple[int | None, None]:
        looks.append(watched)
        if len(looks) == 1:
            raise RuntimeError("once")
        return 3, None

    monkeypatch.setattr(history, "EVERY_S", 0.01)
    kept = history.History(look)
    kept.begin()
    eventually(lambda: len(kept.as_json()["rows"]) > 1, "it goes on")
    assert "a row of the history is missing" in caplog.text
    eventually(lambda: looks[-1], "it knows that somebody watches")


def test_a_service_that_nobody_uses_hears_of_a_node_that_is_lost(service: TestService) -> None:
    url = service.app.services.config.metadb.url

    def heard_of() -> float | None:
        return told(service, node="1").get("distfs_node_up")

    def silent() -> bool:
        run_sql(
            url, "UPDATE node SET heartbeat_at = now() - interval '1 day' WHERE id = 1"
        )  # until it speaks
        return heard_of() == 0

    eventually(lambda: heard_of() == 1, "it was looked for")
    eventually(silent, "it is looked for again")
