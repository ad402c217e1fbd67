"""Where else lines of the log go: to syslog, by datagrams, or to systemd's journal. They are never waited for.

Who logs has handed its lines over long ago (``process.log_writer``); what a sink cannot take at once is dropped and
counted, as by the files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import time
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from distfs.config.settings import LogConfig
from distfs.errors import Busy
from distfs.process.descriptors import in_words
from distfs.process.log_writer import File
from distfs.process.threads import start
from distfs.telemetry.log_files import LogFile
from distfs.telemetry.metrics import LOG_DROPPED

JOURNAL = "/run/systemd/journal/socket"
#: Seconds after which a sink that failed is tried again.
_AGAIN_S = 1.0
_LOOK_UP_AGAIN_S = 30.0
#: Of a line, by datagram: what every receiver of syslog has to take by the standard is less, what most take is this.
_MOST_UDP, _MOST_LOCAL = 8 << 10, 60 << 10
_DAEMON = 3 << 3
_SEVERITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
_LEVEL = re.compile(r'"level": "([A-Z]+)"')
_NO_NAME = re.compile(r"[^A-Z0-9_]")


class Sink(File, Protocol):
    """Takes whole lines, as a file does."""

    def close(self) -> None: ...

    def flush(self) -> None:
        """Return when what it took is out, or after a moment."""


def sinks(config: LogConfig, part: str, *, aside: bool) -> list[Sink]:
    """All that are configured for a process called ``part``; none without a name."""
    found: list[Sink] = []
    if part and config.dir not in ("auto", "off"):
        found.append(LogFile(config, part, aside=aside))
    if part and config.syslog != "off":
        found.append(Journal() if config.syslog == "journal" else Syslog(config.syslog))
    return found


class Several:
    """All of them, as one file."""

    def __init__(self, each: Sequence[Sink]) -> None:
        self._each = each
        self.why = ""

    @property
    def dropped(self) -> int:
        """Lines of each, in all."""
        return sum(one.dropped for one in self._each)

    def write(self, text: str) -> int:
        """As a file's."""
        told = 0
        for one in self._each:
            if count := one.write(text):
                told, self.why = told + count, one.why
        return told

    def close(self) -> None:
        for one in self._each:
            one.close()


class _Datagrams:
    """Lines, each a datagram to a socket that is opened when it is needed, and again when it failed."""

    def __init__(self) -> None:
        self.dropped = 0
        self.why = ""
        self._untold = 0
        self._socket: socket.socket | None = None
        self._not_before = 0.0

    def write(self, text: str) -> int:
        """Never fails, never waits; -> how many lines were dropped before, which nobody was told yet."""
        lost = 0
        for line in text.splitlines():
            lost += not self._send(line)
        if lost:
            self.dropped += lost
            self._untold += lost
            LOG_DROPPED.add(lost)
            return 0
        told, self._untold = self._untold, 0
        return told

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, line: str) -> bool:
        try:
            if self._socket is None:
                if time.monotonic() < self._not_before:
                    return False
                self._socket = self._opened()
            self._socket.send(self._datagram(line), socket.MSG_DONTWAIT)
            return True
        except OSError as e:
            self.why = in_words(e)
            if e.errno not in (errno.EAGAIN, errno.EMSGSIZE, errno.ENOBUFS):  # it is full just now
                self.close()
                self._not_before = time.monotonic() + _AGAIN_S
            return False

    def _opened(self) -> socket.socket:
        raise NotImplementedError

    def _datagram(self, line: str) -> bytes:
        raise NotImplementedError


class Syslog(_Datagrams):
    """``unix:/dev/log``, or ``udp://host:514`` by RFC 5424."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._path = where.removeprefix("unix:") if where.startswith("unix:") else ""
        self._url, self._host = urlsplit(where), socket.gethostname()
        self._found: Any = None  # what its name stands for
        self._look_up_at = 0.0

    def _opened(self) -> socket.socket:
        if self._path:
            return _connected(socket.AF_UNIX, self._path)
        if self._found is None:
            with contextlib.suppress(OSError):
                self._find(socket.AI_NUMERICHOST)
        if self._found is None:
            self._look_up_soon()
            raise OSError(0, f"{self._url.hostname} is not looked up yet")
        found, self._found = self._found, None  # when it fails it may have moved
        return _connected(*found)

    def _look_up_soon(self) -> None:
        """By a thread: nobody waits for a name's server."""
        now = time.monotonic()
        if now >= self._look_up_at:
            self._look_up_at = now + _LOOK_UP_AGAIN_S
            with contextlib.suppress(Busy):
                start(self._look_up, "syslog's name")

    def _look_up(self) -> None:
        with contextlib.suppress(OSError, UnicodeError):
            self._find()
            self._look_up_at, self._not_before = 0.0, 0.0

    def _find(self, flags: int = 0) -> None:
        host, port = self._url.hostname, self._url.port or 514
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=flags)[0]
        self._found = family, address

    def _datagram(self, line: str) -> bytes:
        level = _LEVEL.search(line)
        priority = _DAEMON + _SEVERITY.get(level[1] if level else "", 6)
        if self._path:  # with the host and the time of whoever receives it there
            return f"<{priority}>distfs[{os.getpid()}]: {line}".encode("utf-8", "replace")[:_MOST_LOCAL]
        when = _value(line, "time") or "-"
        head = f"<{priority}>1 {when} {self._host} distfs {os.getpid()} {_value(line, 'event') or '-'} - "
        return f"{head}{line}".encode("utf-8", "replace")[:_MOST_UDP]


class Journal(_Datagrams):
    """systemd's, in its own way: each name of a line is a field."""

    def __init__(self, path: str = JOURNAL) -> None:
        super().__init__()
        self._path = path

    def _opened(self) -> socket.socket:
        return _connected(socket.AF_UNIX, self._path)

    def _datagram(self, line: str) -> bytes:
        said = json.loads(line)
        level = str(said.pop("level", ""))
        fields = {"MESSAGE": said.pop("message", ""), "PRIORITY": _SEVERITY.get(level, 6)}
        fields["SYSLOG_IDENTIFIER"] = "distfs"
        for name, value in said.items():
            fields["DISTFS_" + _NO_NAME.sub("_", name.upper())[:50]] = value
        out, room = b"", _MOST_LOCAL
        for name, value in fields.items():
            data = str(value).encode("utf-8", "replace")[: max(0, room)]
            room -= len(name) + len(data) + 10
            plain = b"\n" not in data
            out += (
                name.encode()
                + (b"=" + data if plain else b"\n" + len(data).to_bytes(8, "little") + data)
                + b"\n"
            )
            if room <= 0:
                break
        return out


def _value(line: str, name: str) -> str:
    """Of a line that ``JsonFormatter`` made, if it is one word."""
    found = re.search(rf'"{name}": "([\w.:-]{{1,32}})"', line)
    return found[1] if found else ""


def _connected(family: int, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        made.connect(address)
    except OSError:
        made.close()
        raise
    return made
