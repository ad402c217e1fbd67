"""The audit log: its chain, its ends, what verify says of each way to tamper with it, and disks that are full."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from distfs import audit, cli
from distfs.audit import AuditLog
from distfs.cli import main
from distfs.commands.audit import Report, _changes, verify
from distfs.config.file import parse
from distfs.errors import ConfigError, Unavailable

MOST = 1 << 20


def log_of(path: Path, most: int = MOST, *, required: bool = False) -> AuditLog:
    return AuditLog(path, most, required=required)


def filled(path: Path, count: int = 9) -> list[bytes]:
    """A file with ``count`` lines and the first one; -> its lines."""
    with closing(log_of(path)) as log:
        for number in range(1, count):
            log.write({"who": "anna", "action": "upload", "object": f"file {number}", "outcome": "allow"})
    return path.read_bytes().splitlines(keepends=True)


def found(*paths: Path, holds: str = "") -> tuple[list[str], list[str]]:
    """What is wrong, and what is noted."""
    reports: list[Report] = verify(paths, holds)
    return [each for report in reports for each in report.wrong], [
        n for report in reports for n in report.notes
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


def test_lines_say_what_was_done_and_each_has_the_hash_of_the_one_before(path: Path) -> None:
    lines = [json.loads(line) for line in filled(path, 4)]
    assert [line["action"] for line in lines] == ["audit.open", *["upload"] * 3]
    assert [line["n"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["prev"] == audit.NOTHING
    assert all(line["prev"] == before["hash"] for before, line in pairwise(lines))
    text = path.read_bytes().splitlines()[-1]
    assert audit.digest(text[: text.rindex(b',"hash"')] + b"}") == lines[-1]["hash"]
    assert found(path) == ([], [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("umask", [0, 0o777])
def test_nobody_else_may_read_it_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        filled(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def swapped(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], lines[5], lines[4], *lines[6:]]


def forged(lines: list[bytes]) -> list[bytes]:
    """A line made anew, with a hash that is right."""
    line = audit.read(lines[4].rstrip())
    assert line is not None
    entry = {k: v for k, v in line.entry.items() if k not in ("n", "log", "prev", "hash")} | {"who": "eve"}
    made, _ = audit.written(entry, audit.Head(line.head.log, line.head.n - 1, line.prev))
    return [*lines[:4], made, *lines[5:]]


#: A line of another log.
OTHER = audit.written({"action": "x"}, audit.Head("ffffffff", 0, audit.NOTHING))[0]

TAMPERED: list[tuple[str, Callable[[list[bytes]], list[bytes]], list[str]]] = [
    ("changed", lambda ls: [*ls[:4], ls[4].replace(b"anna", b"eve!"), *ls[5:]], ["line 5 (number 5) was changed"]),
    ("the last one changed", lambda ls: [*ls[:-1], ls[-1].replace(b"anna", b"eve!")], ["line 9 (number 9) was ch"]),
    ("made anew", forged, ["line 6 (number 6) does not go on from the one before"]),
    ("one removed", lambda ls: [*ls[:4], *ls[5:]], ["number 5 is missing"]),
    ("several removed", lambda ls: [*ls[:3], *ls[6:]], ["numbers 4 to 6 are missing"]),
    ("two swapped", swapped, ["line 6 (number 5) was moved"]),
    ("one moved to the end", lambda ls: [*ls[:2], *ls[3:], ls[2]], ["line 9 (number 3) was moved"]),
    ("one twice", lambda ls: [*ls[:6], ls[2], *ls[6:]], ["line 7 was added: number 3 is there already"]),
    ("another log's", lambda ls: [*ls[:6], OTHER, *ls[6:]], ["line 7 is of another log", "line 8 is of another"]),
    ("text added", lambda ls: [*ls[:4], b"hello\n", *ls[4:]], ["line 5 is none of an audit log"]),
    ("text at the end", lambda ls: [*ls, b"hello\n"], ["from line 10 on is none of an audit log"]),
    ("one of no number", lambda ls: [*ls[:4], b'{"a":1}\n', *ls[4:]], ["line 5 is none of an audit log"]),
    ("the line break lost", lambda ls: [*ls[:4], ls[4].rstrip() + ls[5], *ls[6:]], ["line 5 is none", "5 to 6"]),
]  # fmt: skip


@pytest.mark.parametrize(("tamper", "says"), [row[1:] for row in TAMPERED], ids=[row[0] for row in TAMPERED])
def test_every_way_to_tamper_is_told_with_its_line(
    path: Path, tamper: Callable[[list[bytes]], list[bytes]], says: list[str]
) -> None:
    path.write_bytes(b"".join(tamper(filled(path))))
    wrong, _ = found(path)
    assert len(wrong) == len(says), wrong
    assert all(text in line for text, line in zip(says, wrong, strict=True)), wrong


def test_lines_removed_at_the_end_show_by_a_hash_that_was_noted(path: Path) -> None:
    lines = filled(path)
    noted = json.loads(lines[-1])["hash"]
    assert found(path, holds=noted) == ([], [])
    path.write_bytes(b"".join(lines[:-2]))
    assert found(path) == ([], [])
    assert f"no line has the hash {noted}" in found(path, holds=noted)[0][0]


def test_it_goes_on_where_it_ended(path: Path) -> None:
    filled(path, 3)
    lines = [json.loads(line) for line in filled(path, 3)]
    assert [line["n"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["action"] for line in lines] == ["audit.open", "upload", "upload"] * 2
    assert found(path) == ([], [])


@pytest.mark.parametrize("kept", [1, 40, -2, -40])
def test_a_line_that_was_cut_short_is_told_of_by_the_one_that_goes_on(path: Path, kept: int) -> None:
    """As a kill, a full disk or a loss of power leaves it."""
    lines = filled(path, 5)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    wrong, [note] = found(path)
    assert not wrong
    assert "line 5 is cut short" in note
    again = [json.loads(line) for line in filled(path, 2)[-2:]]
    assert [line["n"] for line in again] == [5, 6]
    torn = lines[-1][:kept]
    assert again[0]["cut_short"] == {"bytes": len(torn), "sha256": audit.digest(torn)}
    wrong, [note] = found(path)
    assert not wrong
    assert "line 5 was cut short, by a kill or a full disk, as the next one says" in note
    path.write_bytes(path.read_bytes().replace(torn + b"\n", torn[:-1] + b"?\n"))
    assert "line 5 is none of an audit log" in found(path)[0][0]


def test_a_line_that_lacks_nothing_but_its_end_counts(path: Path) -> None:
    path.write_bytes(b"".join(filled(path, 5))[:-1])
    assert found(path) == ([], [])
    assert [json.loads(line)["n"] for line in filled(path, 2)[-2:]] == [6, 7]
    assert found(path) == ([], [])


def test_the_first_line_cut_short_begins_a_chain(path: Path) -> None:
    path.write_bytes(b'{"n":1,"lo')
    filled(path, 2)
    wrong, [note] = found(path)
    assert not wrong
    assert "line 1 was cut short" in note


def test_a_process_that_is_killed_as_it_writes_leaves_what_can_be_verified(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from distfs.audit import AuditLog\n"
        f"log = AuditLog(Path({str(path)!r}), 1 << 30)\n"
        "while True: log.write({'who': 'a', 'action': 'b', 'object': 'c'})"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            before = path.stat().st_size if path.exists() else 0
            until = time.monotonic() + 60
            while (path.stat().st_size if path.exists() else 0) < before + 20_000:
                assert time.monotonic() < until
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    filled(path, 2)
    assert found(path)[0] == []
    assert path.read_text().count("audit.open") == 4
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_full_is_put_aside_and_the_next_one_names_it(path: Path) -> None:
    with closing(log_of(path, 2000)) as log:
        for number in range(40):
            log.write({"action": "upload", "object": str(number)})
    files = sorted(path.parent.iterdir())
    assert len(files) > 3
    assert found(*files) == ([], [])
    second = next(f for f in files[1:] if json.loads(f.read_text().splitlines()[0])["n"] > 1)
    first = json.loads(second.read_text().splitlines()[0])
    assert (first["action"], first["after"] in {f.name for f in files}) == ("audit.open", True)
    oldest, *others = sorted(files, key=lambda f: json.loads(f.read_text().splitlines()[0])["n"])
    wrong, notes = found(*others)
    assert not wrong
    assert oldest.name in notes[0]
    wrong, _ = found(oldest, *others[1:])
    assert "missing" in wrong[0]
    lines = others[0].read_bytes().splitlines(keepends=True)
    others[0].write_bytes(b"".join(lines[:-1]))  # its last line: only the next file knows
    assert "is missing" in found(oldest, *others)[0][0]


@pytest.mark.parametrize("how", ["moved", "removed", "emptied"])
def test_a_file_that_others_put_aside_is_begun_anew(path: Path, how: str) -> None:
    now = [0.0]
    with closing(AuditLog(path, MOST, clock=lambda: now[0])) as log:
        log.write({"action": "one"})
        if how == "moved":
            path.rename(path.with_name("old"))
        elif how == "removed":
            path.unlink()
        else:
            os.truncate(path, 0)
        now[0] += 2
        log.write({"action": "two"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["action"] for line in lines] == ["audit.open", "two"]
    assert [line["n"] for line in lines] == [3, 4]
    if how == "moved":
        assert found(path, path.with_name("old")) == ([], [])


def test_each_of_several_writers_has_a_file_of_its_own(path: Path) -> None:
    logs = [log_of(path) for _ in range(3)]
    for log in logs:
        log.write({"action": "x"})
    names = {"audit.log", "audit.1.log", "audit.2.log"}
    assert {each.name for each in path.parent.iterdir()} == names
    for log, name in zip(logs, ("audit.log", "audit.1.log", "audit.2.log"), strict=True):
        assert log.usage()["file"] == str(path.with_name(name))
    logs[1].close()
    with closing(log_of(path)) as again:
        again.write({"action": "x"})
        assert again.usage()["file"] == str(path.with_name("audit.1.log"))
    for log in logs:
        log.close()
    assert found(*path.parent.iterdir()) == ([], [])


def test_a_fork_has_a_file_of_its_own_and_does_not_hold_its_parents(path: Path) -> None:
    with closing(log_of(path)) as log:
        log.write({"action": "parent"})
        if (child := os.fork()) == 0:
            log.write({"action": "child"})
            os._exit(0)
        os.waitpid(child, 0)
        log.write({"action": "parent"})
    assert found(*path.parent.iterdir()) == ([], [])
    actions = {
        f.name: [json.loads(x)["action"] for x in f.read_text().splitlines()] for f in path.parent.iterdir()
    }
    assert actions == {
        "audit.log": ["audit.open", "parent", "parent"],
        "audit.1.log": ["audit.open", "child"],
    }


class FullDisk:
    """os.write that takes ``left`` bytes more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left, self.refused = left, 0
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        count = min(len(data), self.left)
        if not count:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= count
        return self._write(fd, data[:count])


def test_what_a_full_disk_does_not_take_waits_and_is_written_in_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(log_of(path)) as log:
        log.write({"action": "0"})
        disk = FullDisk(monkeypatch, 100)
        for number in range(1, 4):
            log.write({"action": str(number)})
        assert disk.refused == 3
        assert log.usage()["waiting"] == 3
        assert found(path) == ([], [])  # no half line was left
        disk.left = MOST
        log.write({"action": "4"})
        assert log.usage() | {"file": 0} == {"file": 0, "waiting": 0, "written": 5, "lost": 0, "left_out": 0}
    actions = [json.loads(line)["action"] for line in path.read_text().splitlines()]
    assert actions == ["audit.open", "0", "1", "2", "3", "4"]
    assert found(path) == ([], [])


def test_lines_that_are_too_many_to_wait_are_lost_and_their_number_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MOST_WAITING", 2)
    with closing(log_of(path)) as log:
        log.open()
        disk = FullDisk(monkeypatch, 0)
        for number in range(5):
            log.write({"action": str(number)})
        disk.left = MOST
        log.check()
        log.open()
        log.write({"action": "then"})
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["action"], last["lost"]) == ("then", 3)


def test_where_lines_are_required_nothing_is_changed_without(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(log_of(path, required=True)) as log:
        log.check()
        disk = FullDisk(monkeypatch, 0)
        log.check()  # it cannot know yet: this change's line waits
        log.write({"action": "x"})
        with pytest.raises(Unavailable, match="audit.required"):
            log.check()
        disk.left = MOST
        log.check()
    assert "x" in path.read_text()


def test_refusals_that_anybody_can_send_do_not_fill_the_disk(path: Path) -> None:
    now = [0.5]
    with closing(AuditLog(path, MOST, clock=lambda: now[0])) as log:
        for _ in range(1000):
            log.write({"action": "upload"}, denied=True)
        log.write({"action": "allowed"})
        now[0] += 1
        log.write({"action": "upload"}, denied=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 1 + audit.DENIALS_A_SECOND + 2
    assert lines[-2]["left_out"] == 1000 - audit.DENIALS_A_SECOND
    assert "left_out" not in lines[-1]


def test_nothing_in_an_entry_ends_a_line_or_makes_it_endless(path: Path) -> None:
    with closing(log_of(path)) as log:
        log.write({"object": 'a\nb"},"hash":"' + "0" * 64 + '"}\n\u2028\x00', "why": "\ud800" + "x" * 10_000})
        log.write({"action": "next"})
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 4
    assert found(path) == ([], [])
    assert max(map(len, lines)) < 4 * audit.MOST_TEXT


# --- the command, and the settings ------------------------------------------------------------------


def test_the_command_tells_and_exits_as_others_do(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = filled(path)
    assert main(["audit", "verify", str(path)]) == 0
    assert "9 lines, numbers 1 to 9, last hash " in capsys.readouterr().out
    path.write_bytes(b"".join(lines[:4] + lines[5:]))
    assert main(["audit", "verify", str(path), "--json"]) == 1
    [told] = json.loads(capsys.readouterr().out)
    assert told["wrong"] == ["number 5 is missing"]
    assert main(["audit", "verify", str(path.with_name("none"))]) == 3
    assert "cannot be read" in capsys.readouterr().err
    assert main(["audit", "verify", str(path.parent)]) == 3
    path.write_bytes(b"")
    assert main(["audit", "verify", str(path)]) == 0


def test_a_log_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    with closing(log_of(tmp_path / "none" / "audit.log")) as log:
        with pytest.raises(ConfigError, match="audit.file"):
            log.open()


@pytest.mark.parametrize(
    ("tree", "file"),
    [
        ({}, ""),
        ({"auth": "on"}, "./data/audit.log"),
        ({"auth": "on", "local": {"data": "/d"}}, "/d/audit.log"),
        ({"auth": "on", "metadb": {"url": "postgresql://db/x"}}, ""),
        ({"auth": "on", "audit": {"file": "off"}}, ""),
        ({"audit": {"file": "/var/log/distfs/audit.log"}}, "/var/log/distfs/audit.log"),
        ({"auth": "open"}, ""),
    ],
)
def test_where_it_is(tree: object, file: str) -> None:
    assert parse(tree).audit_file == file


@pytest.mark.parametrize(
    ("section", "key"), [({"required": "true"}, "audit.required"), ({"max_size": "1KiB"}, "audit.max_size")]
)
def test_settings_that_cannot_be_are_refused(section: object, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse({"audit": section})


def test_to_look_at_the_cluster_s_keys_changes_nothing() -> None:
    for word, changes in (("show-id", False), ("rotate", True), ("retire", True)):
        assert _changes(cli._parser().parse_args(["cluster-key", word])) is changes
