"""Lines read back from the files of ``log_files``: of many processes, in order of time.

A line is looked for by its bytes before it is parsed. A file that ended before the time in question, or that says it
has nothing of the request or trace, is not opened; of one that is written now its end is enough. Files are read, not
mapped: services and nodes look, too, and a mapped file that is cut short ends its reader.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from distfs.telemetry.log_files import may_have, put_aside

_READ = 1 << 20
#: Seconds by which lines of a file may be out of order.
_ASTRAY_S = 60.0
_TIME = re.compile(rb'"time": "([\w.:-]{1,40})"')
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_LEVELS = logging.getLevelNamesMapping()
#: A line's time, the line as it was written, and what it says.
Line = tuple[str, bytes, dict[str, object]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines; what is empty is not asked for. Times are as a line has them. ``node``: its number, or the name
    of its log."""

    request: str = ""
    file: str = ""
    node: str = ""
    event: str = ""
    level: str = ""
    since: str = ""
    until: str = ""
    trace: str = ""

    @property
    def id(self) -> str:
        """What is in the index of a file that was put aside, if that has it; empty: nothing is asked for by one."""
        return self.request or self.trace or (self.file if _UUID.fullmatch(self.file) else "")

    def needle(self) -> bytes:
        """What is in each line that is wanted, the rarest of it."""
        event = f'"event": "{self.event}"' if self.event else ""
        return (self.request or self.trace or self.file or event).encode()

    def fits(self, said: dict[str, object]) -> bool:
        """Whether a line that has the needle is wanted."""
        when, node = str(said.get("time", "")), (self.node, f"node{self.node}")
        return (
            (not self.request or said.get("request_id") == self.request)
            and (not self.trace or said.get("trace") == self.trace)
            and (not self.file or self.file in json.dumps(said))
            and (not self.event or said.get("event") == self.event)
            and (not self.node or str(said.get("node")) == self.node or said.get("part") in node)
            and (not self.level or _LEVELS.get(str(said.get("level")), 0) >= _LEVELS[self.level])
            and (not self.since or when >= self.since)
            and (not self.until or when <= self.until)
        )

    def read(self, text: bytes) -> Line | None:
        """A line, if it is wanted; one cut short by a kill is none."""
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return (str(said.get("time", "")), text, said) if isinstance(said, dict) and self.fits(said) else None


def search(
    folders: Sequence[Path],
    wanted: Wanted,
    part: str = "",
    between: Callable[[], object] = lambda: None,
) -> Iterator[Line]:
    """All that is wanted, in order of time; a file that ended before that is not opened.
    ``part``: only of the files of the process of that name. ``between`` is called between pieces of a MiB.

    Raises OSError, and what ``between`` raises.
    """
    with contextlib.ExitStack() as opened:
        found = [
            file for folder in folders for file in _opened(folder, wanted, earliest(wanted), part, opened)
        ]
        yield from heapq.merge(*(_wanted_in(file, wanted, between) for file in found), key=itemgetter(0))


def _opened(
    folder: Path, wanted: Wanted, since: float, part: str, opened: contextlib.ExitStack
) -> list[BinaryIO]:
    """The files of a folder that may have such lines, while names may change: what is open stays what it is."""
    by_number: dict[int, BinaryIO] = {}
    of_part = re.compile(rf"{re.escape(part)}(\.\d+)?\.log(-.*)?")
    changed = True
    while changed:
        changed = False
        aside = put_aside(folder)
        plain = {path.name for path in aside if path.suffix != ".gz"}
        for path in [*folder.glob("*.log"), *aside]:
            if part and not of_part.fullmatch(path.name):
                continue
            try:
                found = path.stat()
                made_of_another = path.name.removesuffix(".gz") in plain and path.suffix == ".gz"
                ended = path in aside and found.st_mtime < since  # of what is written the end is looked at
                if ended or found.st_ino in by_number or made_of_another:
                    continue
                if path.suffix == ".gz" and (id := wanted.id) and not may_have(path, id):
                    continue
                by_number[found.st_ino] = opened.enter_context(path.open("rb"))
            except FileNotFoundError:  # it was put aside or compressed just now
                changed = True
    return _once(by_number.values())


def _once(files: Iterable[BinaryIO]) -> list[BinaryIO]:
    """Without the compressed form of what is open in its plain form, from before it was removed."""
    by_name = {file.name: file for file in files}
    return [
        file for name, file in by_name.items() if name.removesuffix(".gz") == name or name[:-3] not in by_name
    ]


def _wanted_in(file: BinaryIO, wanted: Wanted, between: Callable[[], object]) -> Iterator[Line]:
    needle = wanted.needle()
    for piece in _unpacked(file) if file.name.endswith(".gz") else _plain(file, wanted.since):
        between()
        for text in _lines_with(piece, needle):
            line = wanted.read(text)
            if line is not None:
                yield line


def _plain(file: BinaryIO, since: str) -> Iterator[bytes]:
    """Whole lines, many at once; of a file whose writer was killed in the middle of one the rest, too."""
    file.seek(_beginning(file, since))
    rest = b""
    while read := file.read(_READ):
        piece = rest + read
        end = piece.rfind(b"\n") + 1
        rest = piece[end:]
        yield piece[:end]
    yield rest


def _beginning(file: BinaryIO, since: str) -> int:
    """Where what is of ``since`` or later begins, or before: lines are nearly in order of time, so the end is read
    backwards until it is old enough."""
    at = file.seek(0, 2) if since else 0
    old = since and as_in_lines(_seconds(since) - _ASTRAY_S)
    while at > 0:
        at = max(0, at - _READ)
        file.seek(at)
        if (found := _TIME.search(file.read(4096))) and found[1].decode() < old:
            break
    return at


def earliest(wanted: Wanted) -> float:
    """A time of day before which nothing is wanted; 0: there is none."""
    return _seconds(wanted.since) if wanted.since else 0.0


def _seconds(when: str) -> float:
    """A time of a line. Raises ValueError."""
    return datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp()


def as_in_lines(moment: float) -> str:
    """A time of day as lines have it."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    """Whole lines of a compressed file, many at once; what is damaged or cut off ends it."""
    unpack, rest = zlib.decompressobj(31), b""
    with contextlib.suppress(zlib.error):
        while packed := file.read(_READ // 4):
            while packed:
                piece = rest + unpack.decompress(packed, _READ)
                packed = unpack.unconsumed_tail
                end = piece.rfind(b"\n") + 1
                rest = piece[end:]
                yield piece[:end]
    yield rest


def _lines_with(piece: bytes, needle: bytes) -> Iterator[bytes]:
    """Its lines that have ``needle`` in them."""
    at, size = 0, len(piece)
    while at < size and (found := piece.find(needle, at)) >= 0:
        begin = piece.rfind(b"\n", at, found) + 1 or at
        end = piece.find(b"\n", found)
        end = size if end < 0 else end
        if end > begin:
            yield piece[begin:end]
        at = end + 1


@dataclass
class Follower:
    """What is written from now on."""

    folders: Sequence[Path]
    wanted: Wanted
    _open: dict[int, tuple[Path, BinaryIO]] = field(default_factory=dict)
    _rest: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._find()
        for _, file in self._open.values():
            file.seek(0, 2)

    def more(self) -> list[Line]:
        """What has come since the last call, in order of time. Raises OSError."""
        known = set(self._open)
        self._find()
        lines: list[Line] = []
        for number, (path, file) in list(self._open.items()):
            gone = number in known and not _names(path, number)
            *whole, self._rest[number] = (self._rest.get(number, b"") + file.read()).split(b"\n")
            lines += filter(None, map(self.wanted.read, whole))
            if gone:  # what was written before is read
                file.close()
                del self._open[number], self._rest[number]
        return sorted(lines, key=itemgetter(0))

    def close(self) -> None:
        for _, file in self._open.values():
            file.close()
        self._open.clear()

    def _find(self) -> None:
        for folder in self.folders:
            for path in folder.glob("*.log"):
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_ino not in self._open:
                        self._open[path.stat().st_ino] = (path, path.open("rb"))


def _names(path: Path, number: int) -> bool:
    try:
        return path.stat().st_ino == number
    except FileNotFoundError:
        return False
