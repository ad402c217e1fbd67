"""GET /logs: what a service and its nodes logged, each on a machine of its own, as one log."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from distfs.cli import main
from distfs.http_app import create_app
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.process.output import DONE, FAILED, NOT_TOLD, USAGE
from distfs.routes import logs
from distfs.storage_server import StorageServer
from distfs.telemetry.log_query import OwnFiles
from tests.contract.litter import eventually
from tests.postgres import database_url, run_sql
from tests.service import HttpAddress, _wait_for_nodes, listening, running_node, small_config


def line(second: int, message: str, part: str, request: str = "-", **facts: object) -> str:
    said = {"part": part, "time": f"2026-01-31T12:00:{second:02d}.000Z", "level": "INFO", "event": "request"}
    return json.dumps(said | {"request_id": request, "logger": "distfs.x", "message": message} | facts) + "\n"


@dataclass(frozen=True)
class Machines:
    """A service and two nodes, each with a folder of its own."""

    service: HttpAddress
    nodes: tuple[StorageServer, ...]
    own: Path

    @property
    def url(self) -> str:
        return f"http://{self.service.host}:{self.service.port}"

    def told(self, **wanted: str) -> list[dict[str, object]]:
        answer = self.service.ask("GET", f"/logs?{urlencode(wanted)}")
        assert (answer.status, answer.whole) == (200, True), answer.text
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        return [json.loads(text) for text in answer.text.splitlines()]

    def messages(self, **wanted: str) -> list[object]:
        return [said["message"] for said in self.told(**wanted)]


@pytest.fixture(scope="module")
def machines(postgres: EmbeddedPostgres) -> Iterator[Machines]:
    run_sql(postgres.url, f"CREATE DATABASE {(name := f'logs_{uuid4().hex}')} TEMPLATE migrated")
    config = small_config(database_url(postgres, name))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distfs-test-")))
        own = folder / "service-logs"
        own.mkdir()
        nodes = [stack.enter_context(running_node(folder / f"node{n}", config)) for n in range(2)]
        for number, node in enumerate(nodes):
            (folder / f"logs{number}").mkdir()
            node.log_files = OwnFiles(folder / f"logs{number}", "node")
        app = create_app(replace(config, log=replace(config.log, dir=str(own))))
        stack.callback(app.close)
        _wait_for_nodes(config, 2)
        host, port = stack.enter_context(listening(app, config))
        made = Machines(HttpAddress(host, port), tuple(nodes), own)
        (own / "service.log").write_text(
            line(1, "first", "service", "r1") + line(4, "fourth", "service", "r1", level="ERROR")
        )
        for number, text in enumerate(["second", "third"]):
            (folder / f"logs{number}" / "node.log").write_text(line(number + 2, text, "node", "r1"))
            (folder / f"logs{number}" / "another.log").write_text(line(3, "of somebody else", "node", "r1"))
        yield made


def test_a_requests_way_over_machines_is_told_in_order_of_time(machines: Machines) -> None:
    assert machines.messages(request="r1") == ["first", "second", "third", "fourth"]
    assert machines.messages(level="error") == ["fourth"]
    assert machines.messages(since="2026-01-31T12:00:02Z", until="2026-01-31T12:00:03Z") == [
        "second",
        "third",
    ]
    assert machines.messages(request="nobody") == []
    assert machines.service.ask("HEAD", "/logs").status == 200


def test_lines_of_a_folder_that_several_share_are_told_once(machines: Machines) -> None:
    node = machines.nodes[0]
    before, node.log_files = node.log_files, OwnFiles(machines.own, "service")
    try:
        (machines.own / "twice.log").write_text(line(9, "again", "x", "r2") * 2)
        assert machines.messages(request="r1") == ["first", "third", "fourth"]
        assert machines.messages(request="r2") == ["again", "again"], "one part has logged it twice"
    finally:
        node.log_files = before
        (machines.own / "twice.log").unlink()


def test_what_is_longer_than_a_piece_comes_whole(machines: Machines) -> None:
    files = machines.nodes[0].log_files
    assert files is not None
    many = files.folder / "node.1.log"
    many.write_text("".join(line(5, f"{number} {'x' * 900}", "node", "r3") for number in range(2000)))
    try:
        assert [str(text).split(" ")[0] for text in machines.messages(request="r3")] == [
            str(number) for number in range(2000)
        ]
    finally:
        many.unlink()


def test_what_cannot_be_asked_is_said_and_the_rest_is_told(
    machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    node = machines.nodes[1]
    before, node.log_files = node.log_files, None
    try:
        *told, missing = machines.told(request="r1")
        assert [said["message"] for said in told] == ["first", "second", "fourth"]
        assert missing["event"] == "log.missing"
        assert "set log.dir" in str(missing["message"])
        assert main(["logs", "--service", machines.url, "--request", "r1", "--json"]) == FAILED
        out, err = capsys.readouterr()
        assert [json.loads(text)["message"] for text in out.splitlines()] == ["first", "second", "fourth"]
        assert "set log.dir" in err
    finally:
        node.log_files = before


def test_the_command_asks_services_for_it(machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["logs", "--service", machines.url, "--service", machines.url.removeprefix("http://")]
    assert main([*both, "--request", "r1"]) == DONE
    told = capsys.readouterr().out.splitlines()
    assert [text.split(" ")[-1] for text in told] == ["first", "second", "third", "fourth"]
    assert main([*both, "--request", "nobody"]) == FAILED
    assert main([*both, "/tmp"]) == USAGE
    assert main(["logs", "--service", "http://127.0.0.1:1"]) == NOT_TOLD
    assert "service http://127.0.0.1:1 tells nothing" in capsys.readouterr().err


@pytest.mark.parametrize("first", ["good", "dead"])
def test_one_service_that_is_down_hides_nothing_of_the_others(
    machines: Machines, capsys: pytest.CaptureFixture[str], first: str
) -> None:
    urls = [machines.url, "http://127.0.0.1:1"][:: 1 if first == "good" else -1]
    assert main(["logs", *(word for url in urls for word in ("--service", url)), "--request", "r1"]) == FAILED
    out, err = capsys.readouterr()
    assert [text.split(" ")[-1] for text in out.splitlines()] == ["first", "second", "third", "fourth"]
    assert err.startswith("service http://127.0.0.1:1 tells nothing: ")
    assert (err.count("\n"), "start it" in err) == (1, True)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"since": "yesterday"}, "10min"),
        ({"level": "loud"}, "known: DEBUG"),
        ({"event": "nonsense"}, "known: "),
        ({"line": "1"}, "nothing that a log is asked for"),
        ({"request": "x" * 1000}, "at most"),
        ({"since": "9" * 30 + "d"}, "10min"),
    ],
)
def test_what_cannot_be_meant_is_refused(machines: Machines, asked: dict[str, str], said: str) -> None:
    answer = machines.service.ask("GET", f"/logs?{urlencode(asked)}")
    assert (answer.status, said in answer.text) == (400, True), answer.text


def test_few_at_once_may_ask_and_whoever_goes_away_holds_no_place(machines: Machines) -> None:
    many = machines.own / "many.log"
    many.write_text("".join(line(6, f"{number} {'x' * 9000}", "x", "r4") for number in range(3000)))
    waiting = []
    try:
        for _ in range(logs.MOST_AT_ONCE):  # of whose answer nobody reads more than the head
            connection = machines.service.connect()
            connection.request("GET", "/logs?request=r4")
            waiting.append((connection, connection.getresponse()))
        assert machines.service.ask("GET", "/logs").status == 503
    finally:
        for connection, response in waiting:
            response.close()
            connection.close()
    eventually(lambda: machines.service.ask("GET", "/logs?request=r1").status == 200, "their places are free")
    many.unlink()
