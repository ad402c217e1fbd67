"""Logging: who logs where, and how a line is made.

A line is ``time level request-id logger message key=value``, or one JSON object with the same facts.
What is worth searching for is given as ``extra={...}`` and becomes ``key=value``; text from outside
cannot break a line, and no token is in one.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import islice
from types import MappingProxyType
from typing import TextIO, cast

from distfs.config.settings import LogConfig
from distfs.process.log_writer import REQUEST_ID, Kept, LineWriter, drops
from distfs.process.redact import tokenless, visible
from distfs.telemetry import events
from distfs.telemetry.context import NO_REQUEST, current_request_id
from distfs.telemetry.log_sinks import Several, Sink, sinks
from distfs.telemetry.metrics import LOG_DROPPED

#: Made once: ``json.dumps`` makes one for each call with arguments.
_ENCODED = json.JSONEncoder(default=str).encode
_PLAIN = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f-\x9f]+")
#: What all records have in common; by which thread and process is not said, as by ``setup_logging``.
_RECORD = vars(logging.LogRecord("", logging.INFO, "", 0, "", None, None)) | dict.fromkeys(
    ("thread", "threadName", "process", "processName")
)
_OWN_COUNT = len(vars(logging.makeLogRecord({})))  # of a record's attributes; what it was given follows
_OWN_KEYS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", REQUEST_ID}
_LEVELS = {logging.DEBUG: "DEBUG", logging.INFO: "INFO"}
_NOTHING: Mapping[str, object] = MappingProxyType({})

#: Where all is logged when that is aside, and how it makes a line of facts there.
_aside: list[LineWriter] = []
#: What has it, too: files, and others.
_sinks: list[Sink] = []


def setup_logging(
    config: LogConfig,
    stream: TextIO | None = None,
    *,
    part: str = "",
    aside: bool = False,
    file: str = "",
    store: Sink | None = None,
) -> None:
    """Log everything of this process to ``stream`` (stderr) at the level and in the format of ``config``, and to
    files of its own, if there is a folder for them; ``store``: there, too.

    ``part``: what JSON calls this process, where several write to one stream. ``file``: what its files are called;
    empty: it has none. ``aside``: a thread writes, and nobody
    else waits for whoever reads the log.
    """
    # Nobody is told where in the code, by which thread or process something was logged; to find out is not cheap.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    out = stream or sys.stderr
    for old in _sinks:
        old.close()
    _sinks[:] = sinks(config, file, aside=aside) + ([store] if store else [])
    kept = [Kept(Several(_sinks[:]), JsonFormatter(file))] if _sinks else []
    handler: logging.Handler = logging.StreamHandler(out)
    if aside:
        handler = LineWriter(out, current_request_id, kept[0] if kept else None, LOG_DROPPED.add)
    handler.setFormatter(JsonFormatter(part) if config.format == "json" else TextFormatter())
    _aside[:] = [handler] if isinstance(handler, LineWriter) else []
    root = logging.getLogger()
    for each in root.handlers[:]:
        root.removeHandler(each)
    root.addHandler(handler)
    for one in kept if not aside else ():
        root.addHandler(FileHandler(one))
    set_level(config)


def log_dropped() -> int:
    """How many lines of this process's log were, in all."""
    return _aside[0].dropped if _aside else sum(sink.dropped for sink in _sinks)


class FileHandler(logging.Handler):
    """Writes a line to a file at once, for a process that has no other thread."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self._file = kept.file
        self.setFormatter(kept.formatter)

    def emit(self, record: logging.LogRecord) -> None:
        if dropped := self._file.write(self.format(record) + "\n"):
            self._file.write(self.format(drops(dropped, self._file.why)) + "\n")


def log_facts(
    logger: logging.Logger,
    message: str,
    facts: Mapping[str, object],
    level: int = logging.INFO,
    request_id: str = "",
) -> None:
    """``logger.log(level, message, extra=facts)``, for what is logged with each request: the general way takes as
    long as to read its head. No fact has the name of an attribute of a record. ``request_id``: empty: this thread's.
    """
    if not logger.isEnabledFor(level):
        return
    name, request_id = _LEVELS[level], request_id or current_request_id()
    now = time.time()
    for writer in _aside:
        if logging.root.handlers != [writer]:  # somebody else listens, too
            break
        writer.add(partial(_of_facts, (now, name, request_id, logger.name, message, facts)))
        return
    record = logging.LogRecord.__new__(logging.LogRecord)
    record.__dict__.update(_RECORD, name=logger.name, msg=message, created=now, msecs=now % 1 * 1000, **facts)
    record.__dict__.update(levelno=level, levelname=name)
    record.__dict__[REQUEST_ID] = request_id
    logger.handle(record)


def _of_facts(
    said: tuple[float, str, str, str, str, Mapping[str, object]], formatter: logging.Formatter
) -> str:
    return cast(TextFormatter | JsonFormatter, formatter).line(*said)


def flush_log() -> None:
    """Return when everything that was logged is written."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    for sink in _sinks:
        sink.flush()


def logs_json() -> bool:
    """Whether the log of this process is JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def set_level(config: LogConfig) -> None:
    """From now on log what ``config.level`` and above is."""
    logging.getLogger().setLevel(config.level.upper())


class TextFormatter(logging.Formatter):
    """``2025-01-31T12:00:00.123Z INFO 1f2e… distfs.access request method=GET status=200``."""

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record.created, record.levelname, _request_of(record), *_said_by(record))
        return f"{line}\n{tokenless(self.formatException(record.exc_info))}" if record.exc_info else line

    @staticmethod
    def line(
        created: float, level: str, request_id: str, logger: str, message: str, facts: Mapping[str, object]
    ) -> str:
        parts = [f"{_time(created)} {level} {request_id} {logger} {visible(message)}"]
        for key, value in facts.items():
            if type(value) is int:
                parts.append(f"{key}={value}")
                continue
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
            parts.append(f"{key}={text if _PLAIN.fullmatch(text) else json.dumps(text)}")
        return tokenless(" ".join(parts))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, request_id, logger, message, the facts, and any traceback."""

    def __init__(self, part: str = "") -> None:
        """``part``: the name of this process, first of all; empty: none."""
        super().__init__()
        self._part: dict[str, object] = {"part": part} if part else {}

    def format(self, record: logging.LogRecord) -> str:
        name, message, facts = _said_by(record)
        event, names = events.find(record.name, record.msg)
        if names and isinstance(record.args, tuple):
            told = {k: _plain(v) for k, v in zip(names, record.args, strict=False) if k != events.UNNAMED}
            facts = {**told, **_class_of(record), **_slice_of(told), **facts}
        request_id = _request_of(record)
        if request_id == NO_REQUEST:  # a node's, who has the id of whoever asked
            request_id = str(facts.get("request_id", request_id))
        trace = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return self.line(record.created, record.levelname, request_id, name, message, facts, trace, event)

    def line(
        self,
        created: float,
        level: str,
        request_id: str,
        logger: str,
        message: str,
        facts: Mapping[str, object],
        behind: Mapping[str, object] = _NOTHING,
        event: str = "",
    ) -> str:
        """``behind``: what comes last, whatever the facts say. ``event``: empty: that of the message."""
        entry: dict[str, object] = {
            **self._part,
            "time": _time(created),
            "level": level,
            "event": event or events.find(logger, message)[0],
            "request_id": request_id,
            "logger": logger,
            "message": message,
        }
        if facts.keys().isdisjoint(entry):
            entry.update(facts)
        else:
            entry |= {key: value for key, value in facts.items() if key not in entry}
        return tokenless(_ENCODED({**entry, **behind} if behind else entry))


def json_line(part: str, message: str, event: str = events.OTHER) -> str:
    """What another process wrote, as a JSON object of this log's: its own object, or a line of text, of ``event``."""
    if message.startswith('{"time": '):  # JsonFormatter's
        return f'{{"part": {json.dumps(part)}, {message[1:]}'
    record = logging.makeLogRecord({"levelname": "INFO"})
    when = _time(record.created)
    said = {"part": part, "time": when, "level": record.levelname, "event": event, "message": message}
    return json.dumps(said)


def _class_of(record: logging.LogRecord) -> dict[str, object]:
    """The kind of the error that a line tells of."""
    told = record.exc_info[1] if record.exc_info else None
    found = [each for each in (*(record.args or ()), told) if isinstance(each, BaseException)]
    return {"error_class": getattr(found[0], "kind", type(found[0]).__name__)} if found else {}


def _slice_of(told: Mapping[str, object]) -> dict[str, object]:
    """Of a fragment."""
    slice_, dot, index = str(told.get("fragment", "")).partition(".")
    return {"slice": slice_, "index": index} if dot else {}


def _plain(value: object) -> object:
    """A value of a sentence, as a fact of its own."""
    return value if isinstance(value, int | float) else str(value)


def _time(created: float) -> str:
    whole = int(created)
    return f"{_second(whole)}.{int((created - whole) * 1000):03d}Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def _request_of(record: logging.LogRecord) -> str:
    known = record.__dict__.get(REQUEST_ID)
    return current_request_id() if known is None else str(known)


def _said_by(record: logging.LogRecord) -> tuple[str, str, Mapping[str, object]]:
    """Who says it, what, and the facts."""
    given = islice(vars(record).items(), _OWN_COUNT, None)
    return record.name, record.getMessage(), {key: v for key, v in given if key not in _OWN_KEYS}
