"""Files of a process's log: each process writes its own; they are rotated, compressed, and not kept for ever.

``NAME.log`` is being written. It has one writer, by a lock of flock(2), which the kernel takes from the dead; who
finds it taken has ``NAME.1.log``, and so on. A file that is full is put aside as ``NAME.log-TIME`` and compressed to
``NAME.log-TIME.gz``, where TIME is that of its end; ``NAME.log-TIME.ids`` tells which requests and files it is of, so
that who looks for one opens few of them. Whoever writes looks after all that was put aside in the folder.

What cannot be written is dropped and counted; nobody waits for it. A folder or file that was moved away is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import re
import threading
import time
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from distfs.config.settings import LogConfig
from distfs.errors import Busy
from distfs.process.descriptors import in_words
from distfs.process.threads import start
from distfs.telemetry.metrics import LOG_DROPPED

MIB = 1 << 20
#: A file is so much of ``log.max_bytes``, but at most so many bytes.
_SHARE, _MOST = 8, 64 * MIB
#: Seconds after which it is looked whether the file is still there, and a disk that failed is tried again.
_LOOK_S = 1.0
_LOWEST_PRIORITY = 19
_LONGEST = 64 << 10  # of a line whose ids are looked for
#: The id of a request or a trace in a line, if no character of it is written as another; or a UUID, of whatever.
_ID, _PLAIN_ID = re.compile(rb'"(?:request_id|trace)": "([\w.-]{1,64})"'), re.compile(r"[A-Za-z0-9_.-]{1,64}")
_UUID = re.compile(rb"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_ASIDE = re.compile(r".+\.log-\d{8}T\d{6}\.\d{6}Z(\.gz)?")


class LogFile:
    """What one process writes. One thread at a time may write."""

    def __init__(
        self,
        config: LogConfig,
        part: str,
        *,
        aside: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``part``: what the files are called. ``aside``: a thread may compress; else whoever writes does."""
        self._folder, self._part = Path(config.dir).absolute(), part_of(part)
        self._max_bytes, self._keep_for = int(config.max_bytes), float(config.keep_for)
        self._most = max(1, min(_MOST, self._max_bytes // _SHARE))
        self._aside, self._clock = aside, clock
        self._file, self._path, self._size, self._pid = -1, self._folder, 0, os.getpid()
        self._look_at = 0.0  # when it is time to look again
        self._tidying = threading.Lock()
        self.dropped = 0  # lines, in all
        self._untold, self.why = 0, ""

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._folder

    def write(self, text: str) -> int:
        """Write whole lines. Never fails; -> how many lines were dropped before them, which nobody was told yet."""
        if not text:
            return 0
        data = text.encode("utf-8", "backslashreplace")
        try:
            self._ready()
            self._append(data)
        except OSError as e:
            self.why = in_words(e)
            lines = data.count(b"\n")
            self.dropped += lines
            LOG_DROPPED.add(lines)
            self._untold += lines
            return 0
        told, self._untold = self._untold, 0
        if self._size >= self._most:
            with contextlib.suppress(OSError):
                self._rotate()
        return told

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is written any more. In a forked process the number is another's."""
        if self._file >= 0 and self._pid == os.getpid():
            os.close(self._file)
        self._file = -1

    def _ready(self) -> None:
        """The file is open, and the one that has its name. Raises OSError."""
        now = self._clock()
        if now < self._look_at:
            if self._file < 0:
                raise OSError(0, self.why)
            return
        self._look_at = now + _LOOK_S
        if self._file >= 0 and not _is(self._path, self._file):
            self.close()
        if self._file < 0:
            self._open()
            self._tidy_soon()

    def _open(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in count():
            name = f"{self._part}.log" if number == 0 else f"{self._part}.{number}.log"
            file = _owned(self._folder / name)
            if file is not None:
                self._file, self._path, self._pid = file, self._folder / name, os.getpid()
                break
        self._size = os.fstat(self._file).st_size
        if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
            self._append(b"\n")  # whoever wrote it was killed within a line

    def _append(self, data: bytes) -> None:
        """All of it, or nothing. Raises OSError."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            if len(left) < len(data):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def _rotate(self) -> None:
        when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._path.rename(self._path.with_name(f"{self._path.name}-{when}"))
        self.close()
        self._look_at = 0.0
        self._ready()

    def _tidy_soon(self) -> None:
        if self._aside:
            with contextlib.suppress(Busy):  # the next file's
                start(self._tidy_slowly, "log files")
                return
        self._tidy()

    def _tidy_slowly(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # of this thread alone, on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        self._tidy()

    def _tidy(self) -> None:
        """Compress what was put aside, and remove what is too old, or too much. One process at a time does."""
        with contextlib.suppress(OSError), self._tidying:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for path in put_aside(self._folder):
                    if path.suffix != ".gz":
                        _compress(path)
                self._remove()
            finally:
                os.close(folder)

    def _remove(self) -> None:
        oldest = time.time() - self._keep_for
        room = self._max_bytes - sum(path.stat().st_size for path in self._folder.glob("*.log"))
        for path in reversed(put_aside(self._folder)):
            found, ids = path.stat(), ids_of(path)
            room -= found.st_size + (ids.stat().st_size if ids.exists() else 0)
            if room < 0 or found.st_mtime < oldest:
                path.unlink(missing_ok=True)
                ids.unlink(missing_ok=True)


def part_of(name: str) -> str:
    """What the files of a process of that name are called."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name) or "log"


def put_aside(folder: Path) -> list[Path]:
    """The files of a folder that nobody writes any more, the oldest first."""
    found = [path for path in folder.iterdir() if _ASIDE.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name.rpartition(".log-")[2])


def ids_of(path: Path) -> Path:
    """Where it stands which requests, traces, files and slices a file that was put aside is of: hashes of 32 bits, in
    order."""
    return path.with_name(f"{path.name.removesuffix('.gz')}.ids")


def may_have(path: Path, id: str) -> bool:
    """Whether there may be lines of a request or trace, or with a UUID, in a file that was put aside."""
    if not _PLAIN_ID.fullmatch(id):
        return True
    hashes = array("I")
    try:
        hashes.frombytes(ids_of(path).read_bytes())
    except (OSError, ValueError):  # there is none, or none that is whole
        return True
    wanted = zlib.crc32(id.encode())
    at = bisect_left(hashes, wanted)
    return at < len(hashes) and hashes[at] == wanted


def _owned(path: Path) -> int | None:
    """A file, open to be written at its end by nobody else; None: somebody else has it. Raises OSError."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, file):
                return file
        except BlockingIOError:
            os.close(file)
            return None
        except OSError:
            os.close(file)
            raise
        os.close(file)  # it was put aside just now


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except OSError:
        return False


def _compress(path: Path) -> None:
    """It keeps its time. A kill leaves a file that the next one writes anew."""
    found = path.stat()
    making, made = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.gz")
    try:
        number = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        ids, rest = set[bytes](), b""
        with path.open("rb") as plain, open(number, "wb") as out, gzip.GzipFile("", "wb", 3, out) as packed:
            while piece := plain.read(MIB):
                packed.write(piece)
                rest += piece
                ids.update(_ID.findall(rest), _UUID.findall(rest))
                rest = rest[rest.rfind(b"\n") + 1 :][-_LONGEST:]
        _write_ids(ids_of(path), ids)
        os.utime(making, (found.st_atime, found.st_mtime))
        making.rename(made)
    except OSError:
        making.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)


def _write_ids(path: Path, ids: set[bytes]) -> None:
    making = path.with_name(f"{path.name}.new")
    number = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(number, "wb") as out:
            out.write(array("I", sorted(map(zlib.crc32, ids))).tobytes())
        making.rename(path)
    except OSError:
        making.unlink(missing_ok=True)
        raise
