"""Everything but the bytes: facts, listing, deleting, health, errors, request ids, the access log."""

from __future__ import annotations

import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from distfs.config.callers import parse_network
from distfs.config.settings import CallersConfig, MetaDBConfig, StorageConfig
from distfs.deadline import Deadline
from distfs.http_app import HttpApp, create_app
from distfs.model import Policy
from tests.contract.litter import eventually
from tests.postgres import run_sql
from tests.service import SLICE, HttpAddress, TestService, listening, running_service, small_config


def put(service: HttpAddress, data: bytes = b"x") -> str:
    answer = service.ask("PUT", "/upload/name", data)
    assert answer.status == 201, answer.text
    return answer.text.strip()


def test_the_facts_of_a_file(service: TestService) -> None:
    uuid = put(service, b"x" * (SLICE + 1))
    answer = service.ask("GET", f"/files/{uuid}")
    entry = json.loads(answer.body)
    assert answer.headers["Content-Type"] == "application/json"
    assert (entry["size"], entry["slices"], entry["policy"]) == (SLICE + 1, 2, "1+1")
    assert entry["created_at"].endswith("+00:00")
    assert service.ask("GET", f"/files/{uuid4()}").status == 404
    assert service.ask("GET", "/files/nonsense").status == 400


def test_a_deleted_file_is_gone_for_everyone(service: TestService) -> None:
    uuid = put(service)
    answer = service.ask("DELETE", f"/files/{uuid}")
    assert (answer.status, answer.body) == (204, b"")
    for path in (f"/download/{uuid}", f"/files/{uuid}"):
        assert service.ask("GET", path).status == 404
    assert service.ask("DELETE", f"/files/{uuid}").status == 404
    assert service.ask("DELETE", "/files/nonsense").status == 400


def test_the_listing_names_every_file_once_in_pages(service: TestService) -> None:
    new = {put(service) for _ in range(5)}
    seen: list[str] = []
    after = ""
    while True:
        page = json.loads(service.ask("GET", f"/files?limit=3{after}").body)
        assert len(page["files"]) <= 3
        seen += [entry["uuid"] for entry in page["files"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert seen == sorted(set(seen))
    assert new <= set(seen)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=", "after=x"])
def test_a_bad_page_is_refused(service: TestService, query: str) -> None:
    assert service.ask("GET", f"/files?{query}").status == 400


def test_health_readiness_and_the_first_page_are_text(service: TestService) -> None:
    assert service.ask("GET", "/healthz").text == "ok\n"
    assert service.ask("GET", "/readyz").text == "ready\n"
    usage = service.ask("GET", "/").text
    assert f"curl -F file=@NAME http://{service.host}:{service.port}/upload\n" in usage


def test_too_few_nodes_are_503_in_words(make_database: Any, tmp_path: Path) -> None:
    config = small_config(make_database("migrated"))
    with running_service(config, tmp_path, nodes=1) as service:
        assert service.ask("GET", "/healthz").status == 200
        ready = service.ask("GET", "/readyz")
        assert (ready.status, ready.headers["Retry-After"]) == (503, "5")
        assert "1 up that take files, an upload needs 2 (policy 1+1)" in ready.text
        as_json = json.loads(service.ask("GET", "/readyz", headers={"Accept": "application/json"}).body)
        assert (as_json["ready"], as_json["nodes_up"], as_json["nodes_needed"]) == (False, 1, 2)
        for size in (1, SLICE * 2):
            answer = service.ask("PUT", "/upload/x", b"x" * size)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5"), answer.text
            assert "node" in answer.text
        assert not service.fragments()


def test_one_node_is_enough_for_a_policy_without_redundancy_and_an_old_schema_is_not(
    make_database: Any, tmp_path: Path
) -> None:
    config = small_config(make_database("migrated"))
    storage: StorageConfig = replace(config.storage, policies={"default": Policy(1, 0)})
    with running_service(replace(config, storage=storage), tmp_path, nodes=1) as service:
        assert service.ask("GET", "/readyz").status == 200
        uuid = put(service, b"y" * SLICE * 2)
        run_sql(config.metadb.url, "DELETE FROM migration WHERE number = (SELECT max(number) FROM migration)")
        eventually(lambda: service.ask("GET", "/readyz").status == 503, "it looks again")
        assert "run `distfs migrate`" in service.ask("GET", "/readyz").text
        assert service.ask("GET", f"/download/{uuid}").body == b"y" * SLICE * 2


def test_however_many_ask_whether_it_is_ready_metadb_is_asked_once_a_second(service: TestService) -> None:
    """Anybody may ask. A load balancer that hears the answer of a moment ago hears enough."""
    meta, looks = service.app.services.meta, 0
    ping = meta.ping

    def counted(deadline: Deadline) -> None:
        nonlocal looks
        looks += 1
        ping(deadline)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meta, "ping", counted)
        began = time.monotonic()
        with ThreadPoolExecutor(8) as threads:
            asked = list(threads.map(lambda _: service.ask("GET", "/readyz").status, range(200)))
        took = time.monotonic() - began
    assert set(asked) == {200}
    assert looks <= took + 1


def test_metadb_away_is_503_in_words_and_the_process_stays_alive(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        config = small_config("")
        url = f"postgresql://distfs@127.0.0.1:{nobody.getsockname()[1]}/distfs"
        config = replace(config, metadb=MetaDBConfig(url=url))
        app = create_app(config)
        try:
            with listening(app, config) as (host, port):
                service = HttpAddress(host, port)
                assert service.ask("GET", "/healthz").status == 200
                for method, path in (
                    ("GET", "/readyz"),
                    ("GET", "/files"),
                    ("GET", f"/download/{uuid4()}"),
                    ("PUT", "/upload/x"),
                ):
                    answer = service.ask(method, path, b"x" if method == "PUT" else None)
                    assert answer.status == 503, (path, answer.text)
                    assert "MetaDB" in answer.text
                    assert "127.0.0.1" not in answer.text, "where it is is for the log"
                    assert answer.headers["Retry-After"] == "5"
            assert any(
                f"{url.split('@')[1].split('/', maxsplit=1)[0]}: " in r.getMessage() for r in caplog.records
            )
        finally:
            app.close()


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/upload", "POST, PUT"),
        ("DELETE", "/upload", "GET, HEAD, POST, PUT"),
        ("POST", "/upload/name", "PUT"),
        ("POST", "/download/x", "GET, HEAD"),
        ("PUT", "/files/x", "DELETE, GET, HEAD, PATCH"),
        ("POST", "/healthz", "GET, HEAD"),
        ("BREW", "/", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405_with_the_right_ones(
    service: TestService, method: str, path: str, allow: str
) -> None:
    answer = service.ask(method, path)
    assert (answer.status, answer.headers["Allow"]) == (405, allow)
    assert answer.text == f"{method} cannot be used here, only {allow}\n"


def test_an_unknown_path_is_404_in_one_line(service: TestService) -> None:
    for path in ("/nothing", "/download/a/b", "/files/a/b", "/Upload", "/%00"):
        answer = service.ask("GET", path)
        assert (answer.status, answer.text.count("\n")) == (404, 1)


@pytest.mark.parametrize("accept", ["application/problem+json", "application/json"])
def test_errors_are_problem_json_when_asked(service: TestService, accept: str) -> None:
    for method, path, status, title in (
        ("GET", "/download/x", 400, "Bad Request"),
        ("GET", "/nothing", 404, "Not Found"),
        ("BREW", "/", 405, "Method Not Allowed"),
    ):
        answer = service.ask(method, path, headers={"Accept": accept, "X-Request-Id": "my-id"})
        assert answer.headers["Content-Type"] == "application/problem+json"
        problem = json.loads(answer.body)
        assert problem.pop("detail")
        assert problem == {"title": title, "status": status, "request_id": "my-id"}


def test_a_bug_of_ours_is_500_without_a_traceback_and_logged_with_it(
    service: TestService, caplog: pytest.LogCaptureFixture
) -> None:
    broken = HttpApp(replace(service.app.services, meta=cast("Any", None)))
    with listening(broken, service.config) as (host, port):
        answer = HttpAddress(host, port).ask("GET", "/files", headers={"X-Request-Id": "bug-1"})
    assert answer.status == 500
    assert answer.text == "distfs failed; the reason is in its log under request bug-1\n"
    assert any(record.exc_info and record.name == "distfs.http" for record in caplog.records)


@pytest.mark.parametrize(
    ("sent", "kept"), [("A-z.0_9" * 9, True), ("x" * 65, False), ("a b", False), ("", False)]
)
def test_a_sane_request_id_is_kept_and_every_answer_has_one(
    service: TestService, sent: str, kept: bool
) -> None:
    for method, path in (("GET", "/"), ("GET", "/nothing"), ("POST", "/upload"), ("GET", "/download/x")):
        given = service.ask(method, path, headers={"X-Request-Id": sent}).headers["X-Request-Id"]
        assert given
        assert (given == sent) == kept


def test_the_access_log_has_a_line_a_request(service: TestService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "distfs.access")
    data = b"x" * (SLICE + 1)
    with listening(service.app, service.config) as (host, port):  # closed, it has written every line
        own = HttpAddress(host, port)
        uuid = own.ask("PUT", "/upload/logged", data).text.strip()
        own.ask("GET", f"/download/{uuid}")
        refusal = own.ask("PUT", "/upload/logged", data, {"Content-Encoding": "br"})
    lines = [vars(record) for record in caplog.records if record.name == "distfs.access"]
    keys = ("method", "path", "status", "received", "sent", "client")
    # A line is written when all is sent: perhaps after the next request's, or as another test's last.
    mine = [line for line in lines if line["path"] in ("/upload/logged", f"/download/{uuid}")]
    assert sorted(tuple(line[key] for key in keys) for line in mine) == [
        ("GET", f"/download/{uuid}", 200, 0, SLICE + 1, "127.0.0.1"),
        ("PUT", "/upload/logged", 201, SLICE + 1, 37, "127.0.0.1"),
        ("PUT", "/upload/logged", 415, 0, len(refusal.body), "127.0.0.1"),
    ]


FORWARDED = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"}


@pytest.mark.parametrize("trusted", [True, False])
def test_a_trusted_proxy_tells_whom_it_speaks_for_and_how(
    trusted: bool, service: TestService, caplog: pytest.LogCaptureFixture
) -> None:
    """Both in what the app logs and in what the host refuses; anybody else may say what it likes."""
    caplog.set_level(logging.INFO, "distfs.access")
    proxies = (parse_network("127.0.0.1"),) if trusted else ()
    config = replace(service.config, callers=CallersConfig(trusted_proxies=proxies))
    app = create_app(config)
    with listening(app, config) as (host, port):
        own = HttpAddress(host, port)
        usage = own.ask("GET", "/", headers=FORWARDED)
        refused = own.ask("PUT", "/upload/forwarded", b"", {**FORWARDED, "Content-Length": "9" * 17})
    app.close()
    assert refused.status == 413
    assert f"{'https' if trusted else 'http'}://{host}:{port}/upload" in usage.text
    logged = [vars(record) for record in caplog.records if record.name == "distfs.access"]
    # Another test's last line may come as late as this, and is one without a proxy.
    told = {(line["path"], line["status"], line["client"], line.get("via")) for line in logged}
    expected = ("198.51.100.7", "127.0.0.1") if trusted else ("127.0.0.1", None)
    assert {("/", 200, *expected), ("/upload/forwarded", 413, *expected)} <= told
    assert trusted or not any("198.51.100.7" in line for line in told)


@pytest.mark.parametrize("host", ["my_files.example:8080", "files", "[::1]:81", "files:80"])
def test_the_usage_names_the_service_as_the_client_called_it(service: TestService, host: str) -> None:
    answer = service.ask("GET", "/", headers={"Host": host})
    assert f" http://{host.removesuffix(':80')}/upload\n" in answer.text


def test_a_delete_with_a_condition_that_does_not_hold_deletes_nothing(service: TestService) -> None:
    uuid = service.ask("PUT", "/upload/x", b"x").text.strip()
    tag = service.ask("HEAD", f"/download/{uuid}").headers["ETag"]
    for conditions in (
        {"If-Match": '"x"'},
        {"If-Match": "nonsense"},
        {"If-None-Match": "*"},
        {"If-None-Match": tag},
        {"If-Unmodified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"},
    ):
        assert service.ask("DELETE", f"/files/{uuid}", headers=conditions).status == 412, conditions
    assert service.ask("GET", f"/download/{uuid}").status == 200
    assert service.ask("DELETE", f"/files/{uuid}", headers={"If-Match": tag}).status == 204
    assert service.ask("DELETE", f"/files/{uuid}", headers={"If-Match": tag}).status == 404
