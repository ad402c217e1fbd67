"""``distfs logs``: what the parts logged, in order of time: of this machine, from files; of all, from MetaDB."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from distfs.config.file import parse_seconds
from distfs.config.settings import Config
from distfs.deadline import Deadline
from distfs.errors import ConfigError, Unavailable
from distfs.log_store import stored
from distfs.process.descriptors import in_words
from distfs.process.output import COMMON_CODES, DONE, FAILED, Parser, tell
from distfs.process.redact import visible
from distfs.telemetry import events
from distfs.telemetry.log_search import Follower, Line, Wanted, search

_MEANING = "show what the parts of distfs on this machine logged, in order of time"
_CODES = f"exit code: 0: told; 1: there is no such line, or a file cannot be read; {COMMON_CODES}"
#: What each line has; everything else is shown unless its sentence says it.
_COMMON = ("part", "time", "level", "event", "request_id", "logger", "message", "traceback")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_POLL_S = 0.25
_STORE_POLL_S, _LATE_S, _STORE_LIMIT_S = 1.0, 30.0, 60.0


def add_logs(commands: argparse._SubParsersAction[Parser]) -> None:
    """What was parsed carries ``look``, what to do."""
    logs = commands.add_parser("logs", help=_MEANING, description=f"{_MEANING}.", epilog=_CODES)
    logs.add_argument(
        "dir", metavar="DIR", nargs="*", type=Path, help="folders of logs (log.dir; else logs in local.data)"
    )
    logs.add_argument("--request", metavar="ID", default="", help="of one request, by its X-Request-Id")
    logs.add_argument("--trace", metavar="ID", default="", help="of one trace, by its id")
    logs.add_argument("--file", metavar="UUID", default="", help="that name a file, a slice or a fragment")
    logs.add_argument(
        "--node", metavar="N", default="", help="of a node, or about it: its id, or its log's name"
    )
    logs.add_argument("--event", metavar="E", default="", help="of one event; docs/events.md lists them")
    logs.add_argument("--level", type=str.upper, choices=_LEVELS, default="", help="of this level and above")
    logs.add_argument("--since", metavar="TIME", default="", help="10min (ago), or 2025-01-31T12:00:00Z")
    logs.add_argument("--until", metavar="TIME", default="", help="likewise")
    logs.add_argument("--follow", action="store_true", help="go on with what is logged from now on")
    logs.add_argument("--json", action="store_true", help="for programs: each line as it is in the file")
    logs.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
    logs.set_defaults(look=_show, metadb=None)


def _show(config: Config, given: argparse.Namespace) -> int:
    in_metadb = config.log.store == "metadb" and not given.dir
    folders = [] if in_metadb else given.dir or [_folder_of(config)]
    if away := [folder for folder in folders if not folder.is_dir()]:
        raise ConfigError(f"there is no folder {away[0]}: name the folder where log.dir lets the parts write")
    if given.event and given.event not in events.NAMES:
        raise ConfigError(f"there is no event {given.event}; known: {', '.join(sorted(events.NAMES))}")
    since, until = _moment(given.since), _moment(given.until)
    wanted = Wanted(
        *(
            given.request,
            given.file,
            given.node,
            given.event,
            given.level,
            _as_in_lines(since),
            _as_in_lines(until),
            given.trace.lower(),
        )
    )
    show = _as_written if given.json else _in_words
    if in_metadb:
        return _show_stored(config, wanted, since, show, follow=given.follow)
    try:
        follower = Follower(folders, wanted) if given.follow else None
        told = _tell(search(folders, wanted, since or 0.0), show)
        while follower is not None:
            time.sleep(_POLL_S)
            _tell(follower.more(), show)
    except OSError as e:
        raise Unavailable(f"the logs cannot be read: {in_words(e)}") from e
    return DONE if told else FAILED


def _show_stored(
    config: Config, wanted: Wanted, since: float | None, show: Callable[[Line], str], *, follow: bool
) -> int:
    """Of all machines, from MetaDB."""
    seen: set[bytes] = set()
    began = time.time() - _LATE_S
    lines_so_far = stored(config.metadb, wanted, since, Deadline(_STORE_LIMIT_S))
    told = _tell(_noted(lines_so_far, _as_in_lines(began), seen), show)
    while follow:  # lines come late, and not in order: a while is read again
        time.sleep(_STORE_POLL_S)
        at = max(began, time.time() - _LATE_S)
        lines = list(
            stored(config.metadb, replace(wanted, since=_as_in_lines(at)), at, Deadline(_STORE_LIMIT_S))
        )
        _tell([line for line in lines if line[1] not in seen], show)
        seen = {line[1] for line in lines}
    return DONE if told else FAILED


def _noted(lines: Iterable[Line], since: str, seen: set[bytes]) -> Iterator[Line]:
    """The same, each that is of ``since`` or later noted in ``seen``."""
    for line in lines:
        if line[0] >= since:
            seen.add(line[1])
        yield line


def _folder_of(config: Config) -> Path:
    if config.log.dir == "off":
        raise ConfigError("log.dir is off: set it to a folder, or name a folder of logs")
    return Path(config.log_dir_of_up)


def _tell(lines: Iterable[Line], show: Callable[[Line], str]) -> int:
    told = 0
    for line in lines:
        tell(show(line))
        told += 1
    return told


def _as_written(line: Line) -> str:
    return line[1].decode("utf-8", "replace")


def _in_words(line: Line) -> str:
    said = line[2]
    message = str(said.get("message", ""))
    first = [str(said.get(key, "-")) for key in ("time", "level", "request_id")]
    facts = [
        f"{key}={value:.3f}" if isinstance(value, float) else f"{key}={value}"
        for key, value in said.items()
        if key not in _COMMON and str(value) not in message
    ]
    text = " ".join([*first, f"{said.get('part', '-')!s:8} {said.get('event', '-')}:", message, *facts])
    trace = [f"    {visible(line)}" for line in str(said.get("traceback", "")).splitlines()]
    return "\n".join([visible(text), *trace])


def _moment(text: str) -> float | None:
    if not text:
        return None
    try:
        return time.time() - parse_seconds(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{text!r} is no time: write 10min, for so long ago, or 2025-01-31T12:00:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _as_in_lines(moment: float | None) -> str:
    if moment is None:
        return ""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
