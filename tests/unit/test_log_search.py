"""``distfs logs``: lines of many processes' files, in order of time."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from distfs.cli import main
from distfs.config.settings import LogConfig
from distfs.process.output import DONE, FAILED, USAGE
from distfs.telemetry import log_search
from distfs.telemetry.log_files import LogFile, may_have
from distfs.telemetry.log_search import Follower, Wanted, search


def line(second: int, message: str, part: str = "service", request: str = "-", **facts: object) -> str:
    said = {"part": part, "time": f"2026-01-31T12:00:{second:02d}.000Z", "level": "INFO", "event": "request"}
    return json.dumps(said | {"request_id": request, "logger": "distfs.x", "message": message} | facts) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two parts; one has a file that was put aside and compressed, one was killed within a line."""
    old = line(1, "first", request="r1") + line(3, "third", request="r2")
    (tmp_path / "service.log-20260131T120004.000000Z.gz").write_bytes(gzip.compress(old.encode()))
    (tmp_path / "service.log").write_text(line(5, "fifth", request="r1", file="f-1", trace="a1"))
    node = line(2, "second", "node1", "r1", level="ERROR", event="node.request") + line(
        4, "fourth", "node1", node=7
    )
    (tmp_path / "node1.log").write_text('{"half": "r1\n' + node + '{"part": "node1", "time": "2026-01-31T12')
    (tmp_path / "node2.log").write_text("")
    (tmp_path / "notes.txt").write_text(line(9, "of somebody else"))
    return tmp_path


def found(folder: Path, **wanted: str) -> list[str]:
    return [str(said["message"]) for _, _, said in search([folder], Wanted(**wanted))]


def test_all_lines_are_in_order_of_time_over_all_parts(folder: Path) -> None:
    assert found(folder) == ["first", "second", "third", "fourth", "fifth"]


@pytest.mark.parametrize(
    ("wanted", "lines"),
    [
        ({"request": "r1"}, ["first", "second", "fifth"]),
        ({"request": "r"}, []),
        ({"request": "nobody's"}, []),
        ({"file": "f-1"}, ["fifth"]),
        ({"trace": "a1"}, ["fifth"]),
        ({"trace": "a"}, []),
        ({"node": "1"}, ["second", "fourth"]),
        ({"node": "7"}, ["fourth"]),
        ({"event": "node.request"}, ["second"]),
        ({"level": "WARNING"}, ["second"]),
        ({"since": "2026-01-31T12:00:04"}, ["fourth", "fifth"]),
        ({"until": "2026-01-31T12:00:02.000Z"}, ["first", "second"]),
        ({"request": "r1", "level": "ERROR"}, ["second"]),
    ],
)
def test_lines_are_found_by(folder: Path, wanted: dict[str, str], lines: list[str]) -> None:
    assert found(folder, **wanted) == lines


def test_a_compressed_file_that_is_cut_off_gives_what_is_whole(tmp_path: Path) -> None:
    lines = "".join(line(number % 60, f"m{number} {os.urandom(20).hex()}") for number in range(20_000))
    packed = gzip.compress(lines.encode(), 1)
    (tmp_path / "service.log-20260131T120004.000000Z.gz").write_bytes(packed[: len(packed) // 2])
    assert 1_000 < len(found(tmp_path)) < 20_000


def test_a_line_across_two_pieces_of_a_compressed_file_is_whole(tmp_path: Path) -> None:
    lines = "".join(line(0, f"m{number} {'x' * 5000}", request="r1") for number in range(1_000))
    (tmp_path / "service.log-20260131T120004.000000Z.gz").write_bytes(gzip.compress(lines.encode()))
    assert len(found(tmp_path, request="r1")) == 1_000


def test_a_file_and_its_compressed_form_are_one(tmp_path: Path) -> None:
    name = "service.log-20260131T120004.000000Z"
    (tmp_path / name).write_text(line(1, "once"))
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(line(1, "once").encode()))
    assert found(tmp_path) == ["once"]


def test_a_file_that_was_put_aside_is_opened_only_for_what_its_ids_have(tmp_path: Path) -> None:
    """By the UUID of a file or a slice, too; what is no UUID is looked for in all."""
    one, other = str(uuid4()), str(uuid4())
    log = LogFile(replace(LogConfig(), dir=str(tmp_path)), "service", aside=False)
    log.write(
        line(1, "up", file=one) + line(2, "down", path=f"/download/{one}") + line(3, "slice", slice=one)
    )
    log._rotate()
    log.close()
    [packed] = tmp_path.glob("*.gz")
    assert found(tmp_path, file=one) == ["up", "down", "slice"]
    assert found(tmp_path, file=one[:8]) == ["up", "down", "slice"]
    assert may_have(packed, one)
    assert not may_have(packed, other)
    packed.write_bytes(gzip.compress(line(1, "not looked at", file=other).encode()))
    assert found(tmp_path, file=other) == []
    assert found(tmp_path, file=other[:8]) == ["not looked at"]


def test_a_file_that_ended_before_what_is_wanted_is_not_opened(tmp_path: Path) -> None:
    ended = tmp_path / "service.log-20260131T120000.000000Z.gz"
    ended.write_bytes(gzip.compress(line(59, "not looked at").encode()))
    os.utime(ended, (1769860800, 1769860800))  # 2026-01-31T12:00:00Z
    (tmp_path / "service.log").write_text(line(50, "young"))
    assert found(tmp_path, since="2026-01-31T12:00:40.000Z") == ["young"]
    assert found(tmp_path) == ["young", "not looked at"]


def test_of_a_file_that_is_written_only_the_end_is_read_that_is_young_enough(tmp_path: Path) -> None:
    old = line(1, "old " + "x" * 500).replace("2026-01-31", "2026-01-30")
    (tmp_path / "service.log").write_text(old * 6000 + line(30, "young") + line(29, "a moment before"))
    file = (tmp_path / "service.log").open("rb")
    since = "2026-01-31T12:00:29.000Z"
    with file:
        assert 0 < log_search._beginning(file, since) < 3_000_000
        assert log_search._beginning(file, "") == 0
    assert found(tmp_path, since=since) == ["young", "a moment before"]
    assert len(found(tmp_path)) == 6002


def test_what_is_written_from_now_on_is_followed_over_a_rotation(folder: Path) -> None:
    follower = Follower([folder], Wanted(request="r9"))
    assert follower.more() == []
    log = folder / "service.log"
    with log.open("a") as file:
        file.write(line(10, "tenth", request="r9") + line(11, "other"))
        file.flush()
        assert [said["message"] for _, _, said in follower.more()] == ["tenth"]
        file.write(line(12, "twelfth", request="r9"))
        file.flush()
        log.rename(folder / "service.log-20260131T120012.000000Z")
        half = line(13, "thirteenth", request="r9")
        log.write_text(half[:50])
        assert [said["message"] for _, _, said in follower.more()] == ["twelfth"]
        with log.open("a") as new:
            new.write(half[50:])
        assert [said["message"] for _, _, said in follower.more()] == ["thirteenth"]
    follower.close()


def test_the_command_tells_it_in_words_or_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "--request", "r1", str(folder)]) == DONE
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "2026-01-31T12:00:02.000Z ERROR r1 node1    node.request: second"
    assert main(["logs", "--request", "r1", "--json", str(folder)]) == DONE
    assert [json.loads(each)["message"] for each in capsys.readouterr().out.splitlines()] == [
        "first",
        "second",
        "fifth",
    ]


def test_a_line_from_outside_stays_one_line_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "service.log").write_text(line(1, "evil\n\x1b[2Jline", path="/\r\n\x07"))
    assert main(["logs", str(tmp_path)]) == DONE
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert not set("\x1b\x07\r") & set(out)


def test_the_command_says_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "--request", "unknown", str(folder)]) == FAILED
    assert main(["logs", str(folder / "none")]) == USAGE
    assert "name the folder" in capsys.readouterr().err
    assert main(["logs", "--event", "nonsense", str(folder)]) == USAGE
    assert "known: " in capsys.readouterr().err
    assert main(["logs", "--since", "yesterday", str(folder)]) == USAGE
    assert "10min" in capsys.readouterr().err
