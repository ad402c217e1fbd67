"""Lines of the log at syslog and at systemd's journal: real sockets, and what becomes of them when nobody reads."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distfs.config.file import load
from distfs.config.settings import LogConfig
from distfs.errors import ConfigError
from distfs.telemetry import metrics
from distfs.telemetry.context import enter_request
from distfs.telemetry.log_sinks import Journal, Syslog
from distfs.telemetry.logs import flush_log, log_dropped, setup_logging
from tests.contract.litter import eventually

LINE = json.dumps(
    {"time": "2026-01-31T12:00:00.123Z", "level": "WARNING", "event": "node.left", "message": "x"}
)
log = logging.getLogger("distfs.test")


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "log"))
        receiver.settimeout(60)
        yield receiver


@pytest.mark.parametrize("aside", [False, True])
def test_what_is_logged_comes_to_a_syslog_on_this_machine(
    unix: socket.socket, aside: bool, log_of_process: None
) -> None:
    setup_logging(LogConfig(syslog=f"unix:{unix.getsockname()}"), io.StringIO(), aside=aside, file="service")
    enter_request("r-1")
    log.error("a line\nthat %s", "forges\n<3>another")
    flush_log()
    head, _, line = unix.recv(65536).decode().partition(": ")
    assert head == f"<27>distfs[{os.getpid()}]"
    said = json.loads(line)
    assert (said["request_id"], said["part"], said["level"]) == ("r-1", "service", "ERROR")
    assert said["message"] == "a line\nthat forges\n<3>another"
    assert "\n" not in line


def test_a_syslog_elsewhere_gets_lines_by_the_standard() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(60)
        sink = Syslog(f"udp://127.0.0.1:{receiver.getsockname()[1]}")
        came = b""

        def comes() -> bool:  # its name is looked up by a thread, and what comes before is dropped
            nonlocal came
            sink.write(LINE + "\n")
            if sink.dropped:
                sink._not_before = 0.0
            receiver.setblocking(False)
            try:
                came = receiver.recv(65536)
            except BlockingIOError:
                return False
            return True

        eventually(comes, "a line has come")
        assert re.fullmatch(
            rb"<28>1 2026-01-31T12:00:00\.123Z \S+ distfs %d node\.left - (\{.*\})" % os.getpid(), came
        )
        receiver.settimeout(60)
        sink.write(json.dumps({"level": "INFO", "message": "y" * 100_000}) + "\n")
        assert len(receiver.recv(65536)) == 8192
        sink.close()


def test_the_journal_gets_each_name_as_a_field(unix: socket.socket) -> None:
    sink = Journal(unix.getsockname())
    said = {
        "level": "ERROR",
        "message": "two\nlines",
        "request_id": "r-1",
        "file": "a=b",
        "hostile\nMESSAGE=": "forged",
        "long": "z" * 100_000,
    }
    sink.write(json.dumps(said) + "\n")
    came = unix.recv(1 << 20)
    assert came.startswith(b"MESSAGE\n" + (9).to_bytes(8, "little") + b"two\nlines\nPRIORITY=3\n")
    assert b"\nSYSLOG_IDENTIFIER=distfs\nDISTFS_REQUEST_ID=r-1\nDISTFS_FILE=a=b\n" in came
    assert b"\nDISTFS_HOSTILE_MESSAGE_=forged\n" in came
    assert len(came) < 64 << 10
    sink.close()


def test_nobody_is_waited_for_and_what_is_lost_is_counted_and_told_once(unix: socket.socket) -> None:
    metrics.share()
    sink = Syslog(f"unix:{unix.getsockname()}")
    lines = 0
    while not sink.dropped:  # until the receiver's line is full
        assert lines < 100_000
        sink.write(LINE + "\n")
        lines += 1
    assert metrics.LOG_DROPPED.value() == sink.dropped == 1
    unix.recv(65536)
    assert sink.write(LINE + "\n") == 1, "it is told when lines can be written again"
    assert sink.write("") == 0
    sink.close()


def test_who_is_away_is_tried_again(tmp_path: Path) -> None:
    sink = Syslog(f"unix:{tmp_path / 'log'}")
    assert sink.write(LINE + "\n" + LINE + "\n") == 0
    assert sink.dropped == 2
    assert sink.why
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "log"))
        eventually(lambda: sink.write(LINE + "\n") > 0, "it is found")
        receiver.settimeout(60)
        assert receiver.recv(65536).endswith(LINE.encode())
    sink.close()


def test_files_and_syslog_have_it_both(unix: socket.socket, tmp_path: Path, log_of_process: None) -> None:
    config = LogConfig(dir=str(tmp_path / "logs"), syslog=f"unix:{unix.getsockname()}")
    setup_logging(config, io.StringIO(), aside=True, file="service")
    log.warning("once")
    flush_log()
    assert b'"once"' in unix.recv(65536)
    assert (tmp_path / "logs/service.log").read_text().count('"once"') == 1
    unix.close()
    (tmp_path / "log").unlink()
    log.warning("twice")
    flush_log()
    assert (tmp_path / "logs/service.log").read_text().count('"twice"') == 1, (
        "one that fails keeps none from it"
    )
    assert log_dropped() == 1


@pytest.mark.parametrize(
    "where", ["on", "", "udp://", "tcp://host:1", "unix:", "unix:relative", "udp://a b:1"]
)
def test_a_wrong_place_is_refused(where: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(json.dumps({"log": {"syslog": where}}))
    with pytest.raises(ConfigError, match=r"log\.syslog"):
        load(str(path), {})


def test_right_places_are_taken() -> None:
    assert not LogConfig().elsewhere
    assert replace(LogConfig(), syslog="journal").elsewhere
