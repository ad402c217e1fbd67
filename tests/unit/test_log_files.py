"""A process's log in files of its own: rotated, compressed, bounded; what cannot be written holds nobody up."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from distfs.config.settings import Bytes, LogConfig, Seconds
from distfs.telemetry.log_files import LogFile, ids_of, may_have, put_aside
from distfs.telemetry.logs import flush_log, log_dropped, log_facts, setup_logging

MIB = 1 << 20


def config(folder: Path, max_bytes: int = 8 * MIB, keep_for: float = 3600) -> LogConfig:
    return LogConfig(dir=str(folder), max_bytes=Bytes(max_bytes), keep_for=Seconds(keep_for))


class Clock:
    """Moves on by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def file_in(folder: Path, clock: Clock | None = None, **limits: int) -> LogFile:
    return LogFile(config(folder, **limits), "service", aside=False, clock=clock or Clock())


def all_of(folder: Path) -> str:
    aside = "".join(gzip.decompress(path.read_bytes()).decode() for path in put_aside(folder))
    return aside + "".join(path.read_text() for path in folder.glob("*.log"))


def test_files_and_their_folder_are_for_nobody_else(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    file_in(folder, max_bytes=MIB).write("x" * MIB + "\n")
    # what it wrote was put aside, and a new file begun
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert sorted(path.suffix for path in folder.iterdir()) == [".gz", ".ids", ".log"]


def test_a_full_file_is_put_aside_and_compressed_and_no_line_is_lost(tmp_path: Path) -> None:
    file = file_in(tmp_path, max_bytes=MIB)
    lines = [f"{number:06d} {'x' * 1000}\n" for number in range(400)]
    for line in lines:
        assert file.write(line) == 0
    assert len(put_aside(tmp_path)) >= 2
    assert all(path.suffix == ".gz" for path in put_aside(tmp_path))
    assert all_of(tmp_path) == "".join(lines)


def test_all_files_together_are_no_larger_than_configured(tmp_path: Path) -> None:
    file = file_in(tmp_path, max_bytes=MIB)
    for _ in range(80):
        file.write(os.urandom(50_000).hex() + "\n")  # 8 MB, which compress to a half
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= MIB + MIB // 8
    assert len(put_aside(tmp_path)) > 1


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    clock = Clock()
    file = file_in(tmp_path, clock, max_bytes=MIB)
    file.write("x" * MIB + "\n")
    file.write("next\n")
    (old,) = put_aside(tmp_path)
    os.utime(old, (time.time() - 7200,) * 2)
    file_in(tmp_path).write("another\n")
    assert put_aside(tmp_path) == []


def test_two_processes_of_one_name_write_two_files(tmp_path: Path) -> None:
    one, two = file_in(tmp_path), file_in(tmp_path)
    one.write("one\n")
    two.write("two\n")
    one.write("one\n")
    assert (tmp_path / "service.log").read_text() == "one\none\n"
    assert (tmp_path / "service.1.log").read_text() == "two\n"


def test_a_half_line_of_a_process_that_was_killed_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "service.log").write_text('whole\n{"half": ')
    file_in(tmp_path).write("next\n")
    assert (tmp_path / "service.log").read_text() == 'whole\n{"half": \nnext\n'


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_was_moved_away_is_made_anew(tmp_path: Path, what: str) -> None:
    clock, folder = Clock(), tmp_path / "logs"
    file = file_in(folder, clock)
    file.write("before\n")
    (folder if what == "folder" else folder / "service.log").rename(tmp_path / "away")
    clock.now += 2
    file.write("after\n")
    assert (folder / "service.log").read_text() == "after\n"


def test_what_a_disk_does_not_take_is_dropped_counted_and_said_once(tmp_path: Path) -> None:
    clock, folder = Clock(), tmp_path / "logs"
    folder.write_text("no folder: so there is no file to be had")
    file = file_in(folder, clock)
    assert [file.write("a\nb\n"), file.write("c\n")] == [0, 0]
    assert file.dropped == 3
    folder.unlink()
    clock.now += 2
    assert [file.write("d\n"), file.write("e\n")] == [3, 0]
    assert (folder / "service.log").read_text() == "d\ne\n"
    assert file.why


def test_a_write_that_the_disk_takes_half_of_leaves_no_half_line(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.unit.test_log_files import file_in\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "file = file_in(Path(sys.argv[1]))\n"
        "file.write('x' * 700 + '\\n'); file.write('y' * 700 + '\\n'); file.write('z\\n')\n"
        "print(file.dropped, file.why)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("1 ")
    assert "large" in done.stdout
    assert (tmp_path / "service.log").read_text() == "x" * 700 + "\nz\n"


@pytest.mark.usefixtures("log_of_process")
@pytest.mark.parametrize("aside", [True, False])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_is_on_the_stream_and_with_its_event_in_the_file(
    tmp_path: Path, aside: bool, form: str
) -> None:
    shown = io.StringIO()
    setup_logging(replace(config(tmp_path), format=form), shown, aside=aside, file="node1")
    log_facts(logging.getLogger("distfs.access"), "request", {"method": "GET", "status": 200})
    logging.getLogger("distfs.upkeep").warning("the scrub of node %d pauses: %s", 3, "it is away")
    flush_log()
    lines = [json.loads(line) for line in (tmp_path / "node1.log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["request", "scrub"]
    assert [line["part"] for line in lines] == ["node1", "node1"]
    assert lines[0]["status"] == 200
    assert (lines[1]["node"], lines[1]["error"]) == (3, "it is away")
    assert len(shown.getvalue().splitlines()) == 2
    assert shown.getvalue().startswith("{") == (form == "json")


@pytest.mark.usefixtures("log_of_process")
def test_when_the_disk_takes_lines_again_it_is_said(tmp_path: Path) -> None:
    folder, shown = tmp_path / "logs", io.StringIO()
    folder.write_text("")
    log = logging.getLogger("distfs.upkeep")
    setup_logging(config(folder), shown, aside=True, file="service")
    log.warning("upkeep %s: %s", "scrub", "first")
    flush_log()
    assert log_dropped() == 1
    folder.unlink()
    end = time.monotonic() + 60
    while "dropped" not in shown.getvalue() and time.monotonic() < end:
        log.warning("upkeep %s: %s", "scrub", "more")
        flush_log()
        time.sleep(0.05)
    assert shown.getvalue().count("lines of the log were dropped here") == 1
    lines = [json.loads(line)["event"] for line in (folder / "service.log").read_text().splitlines()]
    assert lines.count("log.dropped") == 1


def test_a_kill_leaves_at_most_one_half_line_and_the_next_start_goes_on(tmp_path: Path) -> None:
    program = (
        "import io, logging, sys\n"
        "from pathlib import Path\n"
        "from distfs.telemetry.logs import setup_logging\n"
        "from tests.unit.test_log_files import config\n"
        "setup_logging(config(Path(sys.argv[1]), 1 << 20), io.StringIO(), aside=True, file='service')\n"
        "while True: logging.getLogger('distfs.upkeep').warning('upkeep %s: %s', 'scrub', 'x' * 200)\n"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as process:
            end = time.monotonic() + 60
            while len(put_aside(tmp_path)) < 2 and time.monotonic() < end:
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        for path in put_aside(tmp_path):
            path.unlink()
    file_in(tmp_path).write("{}\n")
    assert [path.name for path in tmp_path.glob("*.log")] == ["service.log"]
    broken = 0
    for line in (tmp_path / "service.log").read_text().splitlines():
        try:
            json.loads(line)
        except ValueError:
            broken += 1
    assert broken <= 3


def test_a_file_put_aside_says_which_requests_it_is_of(tmp_path: Path) -> None:
    file = file_in(tmp_path, max_bytes=MIB)
    names = [f"r-{number}" for number in range(4000)]
    for name in names:
        file.write(json.dumps({"request_id": name, "trace": f"t{name}", "pad": "x" * 100}) + "\n")
    aside = put_aside(tmp_path)
    assert len(aside) > 2
    for name in names:
        text = [gzip.decompress(path.read_bytes()).decode() for path in aside]
        has = [f'"{name}"' in each for each in text]
        assert [may_have(path, name) for path in aside] == has
        assert [may_have(path, f"t{name}") for path in aside] == has
        if name == "r-30":
            break
    assert not any(may_have(path, "r-unknown") for path in aside)
    assert all(may_have(path, 'a"b') for path in aside), "of what is written otherwise nobody knows"
    ids_of(aside[0]).write_bytes(b"123")
    assert may_have(aside[0], "r-unknown"), "it is damaged"
    ids_of(aside[0]).unlink()
    assert may_have(aside[0], "r-unknown"), "it is gone"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    tidied = file_in(tmp_path, max_bytes=MIB, keep_for=0)
    tidied._tidy()
    assert not list(tmp_path.glob("*.ids"))
