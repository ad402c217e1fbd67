"""Log lines written by a thread of their own: none is lost, mixed up or waited for."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from distfs.process import log_writer
from distfs.process.log_writer import LineWriter
from distfs.telemetry.context import current_request_id, enter_request, leave_request
from distfs.telemetry.logs import TextFormatter
from tests.contract.litter import eventually


@contextmanager
def logger(stream: io.TextIOBase) -> Iterator[tuple[logging.Logger, LineWriter]]:
    handler = LineWriter(stream, current_request_id)  # type: ignore[arg-type]
    handler.setFormatter(TextFormatter())
    log = logging.getLogger("distfs.test.aside")
    log.propagate = False
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield log, handler
    finally:
        log.removeHandler(handler)
        leave_request()


class Slow(io.StringIO):
    """Takes nothing before it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.let = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.asked.set()
        self.let.wait()
        return super().write(text)


def test_lines_come_in_the_order_of_their_logging_with_the_ids_of_their_requests() -> None:
    out = io.StringIO()
    with logger(out) as (log, handler):
        for number in range(100):
            enter_request(f"r{number}")
            log.info("request" if number % 2 else "number %d", *([] if number % 2 else [number]))
        enter_request("another")
        handler.flush()
    lines = out.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == [f"r{number}" for number in range(100)]


def test_a_line_says_what_was_true_when_it_was_logged() -> None:
    out = io.StringIO()
    with logger(out) as (log, handler):
        things = ["one"]
        log.info("%s", things)
        things.append("two")
        handler.flush()
    assert "two" not in out.getvalue()


def test_who_logs_waits_for_no_reader_and_is_told_how_much_was_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_writer, "MOST_LINES", 10)
    out = Slow()
    with logger(out) as (log, handler):
        log.info("first")
        assert out.asked.wait(30)
        for number in range(25):
            log.info("number %d", number)
        out.let.set()
        handler.flush()
        log.info("last")
        handler.flush()
    lines = out.getvalue().splitlines()
    assert [line.split()[4:] for line in lines[1:11]] == [["number", str(n)] for n in range(10)]
    assert "15 lines of the log were dropped here" in lines[11]
    assert lines[12].endswith("last")
    assert len(lines) == 13


def test_a_line_that_cannot_be_formatted_ends_neither_its_request_nor_the_log() -> None:
    out = io.StringIO()
    with logger(out) as (log, handler):
        handler.handle(logging.LogRecord("distfs.test", logging.INFO, "", 0, "%d", ("no number",), None))
        log.info("good")
        handler.flush()
    bad, good = out.getvalue().splitlines()
    assert "by a bug" in bad
    assert good.endswith("good")


def test_lines_are_written_without_a_flush_and_in_pieces_that_a_pipe_takes_whole() -> None:
    pieces: list[str] = []
    all_there = threading.Event()

    class Pieces(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            if "the last" in text:
                all_there.set()
            return len(text)

    with logger(Pieces()) as (log, _):
        for number in range(200):
            log.info("number %d %s", number, "x" * 50)
        log.info("the last")
        assert all_there.wait(30)
    assert all(len(piece) <= 4096 and piece.endswith("\n") for piece in pieces)
    assert len(pieces) < 50


def test_pieces_are_counted_in_bytes() -> None:
    """Characters outside of ASCII are up to four bytes each, and a pipe would take such a piece in two."""
    pieces: list[str] = []

    class Pieces(Slow):
        def write(self, text: str) -> int:
            pieces.append(text)
            return super().write(text)

    out = Pieces()
    with logger(out) as (log, handler):
        log.info("first")
        assert out.asked.wait(30)
        for number in range(40):
            log.info("number %d %s", number, "x" * 900 if number % 4 else "\N{EURO SIGN}" * 800)
        out.let.set()
        handler.flush()
    assert out.getvalue().count("number") == 40
    assert all(len(piece.encode()) <= 4096 and piece.endswith("\n") for piece in pieces)
    assert len(pieces) < 40


def test_the_end_does_not_wait_for_a_slow_reader_and_what_is_dropped_then_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_writer, "FLUSH_S", 0.2, raising=False)

    class Sluggish(io.StringIO):
        """Takes each piece, and long for it."""

        def write(self, text: str) -> int:
            threading.Event().wait(0.05)
            return super().write(text)

    out = Sluggish()
    with logger(out) as (log, handler):
        for number in range(200):
            log.info("number %d %s", number, "x" * 3000)
        handler.flush()
        eventually(lambda: "were dropped here" in out.getvalue(), "it is said")
    written = sum(" number " in line for line in out.getvalue().splitlines())
    [dropped] = re.findall(r"(\d+) lines of the log were dropped here", out.getvalue())
    assert int(dropped) > 0
    assert written + int(dropped) == 200


def test_the_end_does_not_wait_for_a_thread_that_is_stuck_with_a_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_writer, "FLUSH_S", 0.2, raising=False)
    out = Slow()
    with logger(out) as (log, handler):
        log.info("first")
        assert out.asked.wait(30)
        log.info("second")
        ending = threading.Thread(target=handler.flush)
        ending.start()
        ending.join(10)
        ended = not ending.is_alive()
        out.let.set()
        ending.join()
        eventually(lambda: len(out.getvalue().splitlines()) == 2, "the thread has gone on")
    assert ended, "it waited for its reader"
    assert "1 lines of the log were dropped here" in out.getvalue()


def test_a_forked_process_logs_its_own_lines() -> None:
    program = """
import logging, os, sys
from distfs.config.settings import LogConfig
from distfs.telemetry.logs import setup_logging, flush_log
setup_logging(LogConfig(), aside=True)
log = logging.getLogger("distfs.test")
log.info("parent %d", 1)
flush_log()
log.info("parent %d", 2)
child = os.fork()
if child == 0:
    log.info("child")
    flush_log()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
log.info("at the end")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=os.environ
    )
    said = sorted(line.partition("distfs.test ")[2] for line in done.stderr.splitlines())
    assert said == ["at the end", "child", "parent 1", "parent 2"], done.stderr
