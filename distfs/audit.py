"""The audit log: who changed what, or was not let, a line of JSON each; every line has the SHA-256 of the one before.

A line ends with its own ``hash``, of all that is before it in the line; ``prev`` is that of the line before, ``n``
its number, ``log`` the same random word in all lines of one chain. So what is changed, removed, added or moved later
shows (`distfs audit verify`), as long as somebody knows the last hash: who may write the file may make it all anew.

A file has one writer, by a lock of flock(2), which the kernel takes from the dead. Who finds it taken has the next
one (``audit.1.log``), whether that is another process of a service, another service, or a command. So nobody waits
for others at each change, a line cut short by a kill is nobody else's matter, and no chain has to be shared.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import pwd
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from distfs.errors import ConfigError, Unavailable
from distfs.process.redact import tokenless

log = logging.getLogger("distfs.audit")

#: What the first line of a chain has for the hash of the one before.
NOTHING = "0" * 64
#: The action of the first line that a process writes into a file.
OPEN = "audit.open"
#: Longer texts are cut, so that a line is found within TAIL.
MOST_TEXT = 500
TAIL = 64 * 1024
#: Lines that wait in memory for room on the disk; more are lost, and counted.
MOST_WAITING = 10_000
#: Refused changes are written so often a second at most: anybody may send them, and fill the disk.
DENIALS_A_SECOND = 50
_LOOK_S, _SAY_AGAIN_S = 1.0, 10.0
_HASH = re.compile(rb'(\{.*),"hash":"([0-9a-f]{64})"\}', re.DOTALL)

Entry = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends."""

    log: str
    n: int
    hash: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was read. ``whole``: its hash is that of what it says."""

    head: Head
    prev: str
    entry: Mapping[str, object]
    whole: bool


def written(entry: Entry, after: Head) -> tuple[bytes, Head]:
    """The line of an entry, with its line break, and where the chain ends then."""
    said = {"n": after.n + 1, "log": after.log, **entry, "prev": after.hash}
    body = tokenless(json.dumps(said, separators=(",", ":")))
    found = digest(body.encode())
    return f'{body[:-1]},"hash":"{found}"}}\n'.encode(), Head(after.log, after.n + 1, found)


def read(text: bytes) -> Line | None:
    """A line without its line break; None: it is none of an audit log."""
    parts = _HASH.fullmatch(text)
    if parts is None:
        return None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    n, name, prev = said.get("n"), said.get("log"), said.get("prev")
    if type(n) is not int or not isinstance(name, str) or not isinstance(prev, str):
        return None
    found = parts[2].decode()
    return Line(Head(name, n, found), prev, said, digest(parts[1] + b"}") == found)


def cut_short(rest: bytes) -> dict[str, object]:
    """Of what is no line, at the end of a file: what the line that goes on says of it."""
    rest = rest.removesuffix(b"\n")
    return {"bytes": len(rest), "sha256": digest(rest)}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def now() -> str:
    """As a line has it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def user() -> str:
    """Who has this process, and who had it before sudo(8): the one whom a command's lines are of."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    before = os.environ.get("SUDO_USER")
    return f"{name} (sudo of {before})" if before else name


class AuditLog:
    """What one process writes. Thread-safe. A fork opens a file of its own."""

    def __init__(
        self,
        path: Path | None,
        max_size: int,
        *,
        required: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``path`` None: nothing is written. ``max_size``: of a file, in bytes; then it is put aside under the time
        of day. ``required``: ``check`` refuses what could not be written."""
        self._path, self._max_size, self._required, self._clock = path, max_size, required, clock
        self._lock = threading.Lock()
        self._waiting: deque[dict[str, object]] = deque()
        self._file: _File | None = None
        self._head: Head | None = None  # of the chain that goes on in the next file
        self._left = ""  # the file that had the lines before
        self._pid = os.getpid()
        self._why = ""  # nothing could be written
        self._looked = self._said = self._second = float("-inf")
        self._denials = 0  # in this second
        self._lost = {"lost": 0, "left_out": 0}  # since the last line; in all
        self._count = {"written": 0, "lost": 0, "left_out": 0}

    @property
    def on(self) -> bool:
        return self._path is not None

    def open(self) -> None:
        """Raises ConfigError when the file cannot be written."""
        with self._lock:
            self._look_who()
            if self._path is not None and not self._flush(self._path) and self._file is None:
                raise ConfigError(
                    f"the audit log {self._path} cannot be written: {self._why}; make its folder, or set audit.file "
                    "to a place where distfs may write"
                )

    def check(self) -> None:
        """Before a change. Raises Unavailable, if lines are ``required``, while some wait that cannot be written."""
        if not self._required or self._path is None:
            return
        with self._lock:
            self._look_who()
            if not self._flush(self._path):
                raise Unavailable(
                    "the audit log cannot be written, so nothing may be changed (audit.required): its disk needs room"
                )

    def write(self, entry: Entry, *, denied: bool = False) -> None:
        """Note something. Never fails: what cannot be written waits for the next that can."""
        if self._path is None:
            return
        said = {"time": now()} | {key: _short(value) for key, value in entry.items()}
        with self._lock:
            self._look_who()
            if denied and not self._may_deny():
                self._lose("left_out")
                return
            if len(self._waiting) >= MOST_WAITING:
                self._lose("lost")
                return
            self._waiting.append(said | {k: v for k, v in self._lost.items() if v})
            self._lost = dict.fromkeys(self._lost, 0)
            self._flush(self._path)

    def usage(self) -> dict[str, object]:
        """For /status."""
        with self._lock:
            at = self._file.path if self._file else self._path
            return {"file": str(at) if at else None, "waiting": len(self._waiting), **self._count}

    def close(self) -> None:
        with self._lock:
            if self._path is not None and self._waiting:
                self._flush(self._path)
            if self._file is not None and self._pid == os.getpid():
                self._file.close()
            self._file = None

    # --- under the lock -------------------------------------------------------------------------

    def _look_who(self) -> None:
        """After a fork the file, and what waits, are the parent's."""
        if self._pid != os.getpid():
            if self._file is not None:
                os.close(self._file.fd)
            self._pid, self._file, self._head = os.getpid(), None, None
            self._waiting.clear()

    def _lose(self, how: str) -> None:
        self._lost[how] += 1
        self._count[how] += 1

    def _may_deny(self) -> bool:
        second = float(int(self._clock()))
        if second != self._second:
            self._second, self._denials = second, 0
        self._denials += 1
        return self._denials <= DENIALS_A_SECOND

    def _flush(self, path: Path) -> bool:
        """Write all that waits; whether nothing does any more."""
        try:
            self._open_if_needed(path)
            while self._waiting and self._file:
                self._file.append(self._waiting[0])
                self._waiting.popleft()
                self._count["written"] += 1
        except OSError as e:
            self._why = e.strerror or str(e)
            if self._clock() - self._said > _SAY_AGAIN_S:
                self._said = self._clock()
                log.error(
                    "the audit log %s cannot be written: %s; %d lines wait in memory: make room, or let distfs write "
                    "there",
                    *(path, self._why, len(self._waiting)),
                )
            return False
        return True

    def _open_if_needed(self, path: Path) -> None:
        file = self._file
        if file is not None and self._clock() - self._looked >= _LOOK_S:
            self._looked = self._clock()
            if not file.is_there():  # somebody else has put it aside
                self._leave(file)
                file = None
        if file is not None and file.size >= self._max_size:
            aside = file.path.with_name(f"{file.path.name}.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
            file.path.rename(aside)
            self._leave(replace(file, path=aside))
            file = None
        if file is None:
            opened = _File.take(path)
            self._begin(opened)
            self._file, self._head = opened, None

    def _leave(self, file: _File) -> None:
        self._head, self._left = file.head, file.path.name
        self._file = None
        file.close()

    def _begin(self, file: _File) -> None:
        """Its first line of ours. Raises OSError, with it closed."""
        entry: dict[str, object] = {"time": now(), "who": f"process {os.getpid()}", "action": OPEN}
        if self._head is not None and not file.size:
            file.head = self._head
            entry["after"] = self._left
        try:
            file.append(entry | {"outcome": "allow", **file.found})
        except BaseException:
            file.close()
            raise
        log.info("the audit log goes on in %s, at line %d, after %s", file.path, file.head.n, file.head.hash)


@dataclass
class _File:
    """One that this process has the lock of."""

    path: Path
    fd: int
    size: int  # of whole lines
    head: Head
    found: dict[str, object]  # what the line that goes on is to say of the end that was found
    begin: bytes  # before that line

    @classmethod
    def take(cls, path: Path) -> _File:
        """``path``, or the first of its neighbours that nobody writes. Raises OSError."""
        for number in count():
            at = path if not number else path.with_name(f"{path.stem}.{number}{path.suffix}")
            fd = os.open(at, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same(fd, at):
                    return cls._read(at, fd)
            except BlockingIOError:
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise AssertionError("there is always a next number")

    @classmethod
    def _read(cls, path: Path, fd: int) -> _File:
        """Where it ends. What is cut short there, by a kill or a full disk, is told of by the line that goes on."""
        size = os.fstat(fd).st_size
        tail = os.pread(fd, TAIL, max(0, size - TAIL))
        at, head = len(tail), Head(secrets.token_hex(4), 0, NOTHING)
        while at:
            start = tail.rfind(b"\n", 0, max(0, at - 1)) + 1
            if (line := read(tail[start:at].removesuffix(b"\n"))) is not None:
                head = line.head
                break
            at = start
        found: dict[str, object] = {}
        if rest := tail[at:]:
            found["cut_short"] = cut_short(rest)
        return cls(path, fd, size, head, found, b"\n" if tail and not tail.endswith(b"\n") else b"")

    def append(self, entry: Entry) -> None:
        """Raises OSError, with nothing of it left behind."""
        data, head = written(entry, self.head)
        data = self.begin + data
        try:
            done = os.write(self.fd, data)
            while done < len(data):
                done += os.write(self.fd, data[done:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self.size)
            raise
        self.size += len(data)
        self.head, self.begin = head, b""

    def is_there(self) -> bool:
        """Whether it still has its name, and all that was written."""
        return _same(self.fd, self.path) and os.fstat(self.fd).st_size >= self.size

    def close(self) -> None:
        """With what it has on the disk."""
        with contextlib.suppress(OSError):
            os.fdatasync(self.fd)
        os.close(self.fd)


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def _short(value: object) -> object:
    if isinstance(value, str) and len(value) > MOST_TEXT:
        return value[:MOST_TEXT] + "…"
    return value
