"""Log lines: what is in them, that no text breaks them, and that the request id follows the request."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from distfs.access.token import new_token
from distfs.config.settings import LogConfig
from distfs.model import Address, Node
from distfs.peers.node_list import Nodes, _tell_changes
from distfs.telemetry.context import current_request_id, enter_request, in_context, leave_request
from distfs.telemetry.logs import flush_log, log_facts, setup_logging

log = logging.getLogger("distfs.test")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    leave_request()


def logged(*, aside: bool = False, level: str = "INFO", format: str = "text") -> io.StringIO:
    stream = io.StringIO()
    setup_logging(LogConfig(level, format), stream, aside=aside)
    return stream


def test_a_text_line_has_time_level_request_logger_message_and_facts() -> None:
    stream = logged()
    enter_request("abc-1")
    log.info("sent %d", 3, extra={"path": "/upload/a b", "seconds": 0.12345, "node": "n1"})
    log.debug("not shown")
    words = stream.getvalue().rstrip("\n").split(" ", 1)
    assert words[0].endswith("Z")
    assert words[1] == 'INFO abc-1 distfs.test sent 3 path="/upload/a b" seconds=0.123 node=n1'


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("format", ["text", "json"])
def test_the_short_way_of_logging_facts_says_what_the_long_one_does(format: str, aside: bool) -> None:
    facts = {"method": "GET", "path": "/a b", "status": 200, "seconds": 0.25, "client": "127.0.0.1"}
    stream = logged(format=format, aside=aside)
    enter_request("r1")
    log.info("request", extra=facts)
    log_facts(log, "request", facts)
    flush_log()
    long, short = (re.sub(r"\d{4}-\S+Z", "", line) for line in stream.getvalue().splitlines())
    assert short == long
    log.setLevel(logging.WARNING)
    try:
        log_facts(log, "request", facts)
    finally:
        log.setLevel(logging.NOTSET)
    flush_log()
    assert len(stream.getvalue().splitlines()) == 2


def test_who_listens_beside_the_log_hears_of_facts_too(caplog: pytest.LogCaptureFixture) -> None:
    stream = logged(aside=True)
    logging.getLogger().addHandler(caplog.handler)
    log_facts(log, "request", {"status": 200})
    flush_log()
    assert [record.message for record in caplog.records] == ["request"]
    assert stream.getvalue().endswith("distfs.test request status=200\n")


def test_text_from_outside_cannot_make_a_line_of_its_own() -> None:
    stream = logged()
    log.info("bad\r\nname \x1b[2J", extra={"name_given": 'a\n2000-01-01T00:00:00Z INFO - x "y"'})
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_a_json_line_is_one_object_with_the_traceback_in_it() -> None:
    stream = logged(format="json", level="debug")
    enter_request("r1")
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed", extra={"size": 5, "level": "a fact may not hide the level"})
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry["request_id"] == "r1"
    assert (entry["level"], entry["message"], entry["size"]) == ("ERROR", "failed", 5)
    assert "ValueError: boom" in entry["traceback"]


@pytest.mark.parametrize("wanted", ["", "a b", "x" * 65, "a\nb", "é"])
def test_an_id_that_is_not_sane_is_replaced(wanted: str) -> None:
    given = enter_request(wanted)
    assert given != wanted
    assert given == current_request_id()


def test_a_sane_id_is_kept_until_the_request_is_left() -> None:
    assert enter_request("A.b_c-9" * 9) == "A.b_c-9" * 9
    leave_request()
    assert current_request_id() == "-"


def test_the_request_id_goes_with_work_handed_to_another_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        enter_request("r2")
        assert pool.submit(in_context(current_request_id)).result() == "r2"
        assert pool.submit(current_request_id).result() == "-"


def test_the_short_way_does_not_say_that_a_thread_or_process_logged_which_did_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        log_facts(logging.getLogger("test.telemetry"), "request", {})
    [record] = caplog.records
    assert (record.thread, record.threadName, record.process, record.processName) == (None,) * 4


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_token_that_somebody_put_into_a_path_is_in_no_line(format: str) -> None:
    stream, token = logged(format=format), new_token()
    log_facts(log, "request", {"path": f"/tokens/{token}", "status": 400})
    try:
        raise ValueError(token)
    except ValueError:
        log.exception("%r is not an id", token, extra={"given": token})
    assert token not in stream.getvalue()
    assert stream.getvalue().count("distfs_***") >= 4
    assert "/tokens/distfs_***" in stream.getvalue()


def test_what_becomes_of_nodes_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "distfs.nodes")

    def node(id: int, age: float = 0.0) -> Node:
        return Node(id, UUID(int=id), Address("h", id), "", 1, 1, "active", age < 10, age)

    up = {1: node(1), 2: node(2), 3: node(3)}
    changes: list[tuple[Nodes, Nodes]] = [
        ({}, up),
        (up, up),
        (up, {1: node(1, 11.0), 2: node(2), 4: node(4)}),
        ({1: node(1, 11.0)}, {1: node(1)}),
    ]
    for before, after in changes:
        _tell_changes(before, after)
    told = sorted(record.getMessage() for record in caplog.records)
    assert told == [
        "node 1 at h:1 is down: it was heard of 11 s ago",
        "node 1 at h:1 is up again",
        "node 3 is forgotten",
        "node 4 at h:4 has joined",
    ]
