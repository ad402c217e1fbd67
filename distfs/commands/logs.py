"""``distfs logs``: what the parts logged, in order of time: of this machine, from files; of all, from MetaDB or
through the services."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from distfs.commands.running_service import as_url, ask_lines, service_place
from distfs.config.settings import Config
from distfs.deadline import Deadline
from distfs.errors import ConfigError, Unavailable
from distfs.log_store import stored
from distfs.process.descriptors import in_words
from distfs.process.output import COMMON_CODES, DONE, FAILED, Parser, complain, tell
from distfs.process.redact import visible
from distfs.telemetry.log_query import LEVELS, NAMES, asked, merged
from distfs.telemetry.log_search import Follower, Line, Wanted, as_in_lines, earliest, search

_MEANING = (
    "show what the parts of distfs logged, in order of time: on this machine, or of a service and its nodes"
)
_CODES = f"exit code: 0: told; 1: there is no such line, or not all could be read; {COMMON_CODES}"
#: What each line has; everything else is shown unless its sentence says it.
_COMMON = ("part", "time", "level", "event", "request_id", "logger", "message", "traceback")
_POLL_S = 0.25
_STORE_POLL_S, _LATE_S, _STORE_LIMIT_S = 1.0, 30.0, 60.0


def add_logs(commands: argparse._SubParsersAction[Parser]) -> None:
    """What was parsed carries ``look``, what to do."""
    logs = commands.add_parser("logs", help=_MEANING, description=f"{_MEANING}.", epilog=_CODES)
    logs.add_argument(
        "dir", metavar="DIR", nargs="*", type=Path, help="folders of logs (log.dir; else logs in local.data)"
    )
    logs.add_argument(
        "--service",
        metavar="URL",
        action="append",
        default=[],
        type=service_place,
        help="ask a service for its log and its nodes', wherever they run; may be given for each service",
    )
    logs.add_argument("--request", metavar="ID", default="", help="of one request, by its X-Request-Id")
    logs.add_argument("--trace", metavar="ID", default="", help="of one trace, by its id")
    logs.add_argument("--file", metavar="UUID", default="", help="that name a file, a slice or a fragment")
    logs.add_argument(
        "--node", metavar="N", default="", help="of a node, or about it: its id, or its log's name"
    )
    logs.add_argument("--event", metavar="E", default="", help="of one event; docs/events.md lists them")
    logs.add_argument("--level", type=str.upper, choices=LEVELS, default="", help="of this level and above")
    logs.add_argument("--since", metavar="TIME", default="", help="10min (ago), or 2025-01-31T12:00:00Z")
    logs.add_argument("--until", metavar="TIME", default="", help="likewise")
    logs.add_argument("--follow", action="store_true", help="go on with what is logged from now on")
    logs.add_argument("--json", action="store_true", help="for programs: each line as it is in the file")
    logs.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
    logs.set_defaults(look=_show, metadb=None)


def _show(config: Config, given: argparse.Namespace) -> int:
    if given.service and given.dir:
        raise ConfigError("a folder is of this machine: name folders, or services by --service")
    in_metadb = config.log.store == "metadb" and not given.dir and not given.service
    folders = [] if in_metadb or given.service else given.dir or [_folder_of(config)]
    if away := [folder for folder in folders if not folder.is_dir()]:
        raise ConfigError(f"there is no folder {away[0]}: name the folder where log.dir lets the parts write")
    try:
        wanted = asked({name: value for name in NAMES if (value := getattr(given, name))})
    except ValueError as e:
        raise ConfigError(str(e)) from e
    show = _as_written if given.json else _in_words
    if given.service:
        return _show_again(
            partial(_of_services, [as_url(each, config) for each in given.service], config.tls.ca),
            wanted,
            show,
            follow=given.follow,
        )
    if in_metadb:
        return _show_again(partial(_stored, config), wanted, show, follow=given.follow)
    try:
        follower = Follower(folders, wanted) if given.follow else None
        told = _tell(search(folders, wanted), show)
        while follower is not None:
            time.sleep(_POLL_S)
            _tell(follower.more(), show)
    except OSError as e:
        raise Unavailable(f"the logs cannot be read: {in_words(e)}") from e
    return DONE if told else FAILED


def _stored(config: Config, wanted: Wanted) -> Iterable[Line]:
    return stored(config.metadb, wanted, earliest(wanted) or None, Deadline(_STORE_LIMIT_S))


def _of_services(urls: list[str], ca: str, wanted: Wanted) -> Iterable[Line]:
    """Of their machines, and of those of their nodes; why one of several does not tell is a line, too. Raises
    Unavailable when none does."""
    words = {name: value for name, value in asdict(wanted).items() if value}
    path = f"/logs?{urlencode(words)}"
    silent: set[str] = set()

    def told(url: str) -> Iterator[Line]:
        try:
            yield from filter(None, map(_parsed, ask_lines(url, path, ca)))
        except Unavailable as e:
            silent.add(url)
            if silent.issuperset(urls):
                raise
            missing: dict[str, object] = {"event": "log.missing", "logger": "distfs.http", "message": str(e)}
            yield as_in_lines(time.time()), str(e).encode(), missing

    return merged(map(told, urls))


def _parsed(text: bytes) -> Line | None:
    return Wanted().read(text)


def _show_again(
    look: Callable[[Wanted], Iterable[Line]], wanted: Wanted, show: Callable[[Line], str], *, follow: bool
) -> int:
    """Of many machines. What could not be had is said on standard error."""
    seen: set[bytes] = set()
    missing: set[str] = set()
    began = time.time() - _LATE_S
    told = _tell(_noted(_here(look(wanted), missing), as_in_lines(began), seen), show)
    while follow:  # lines come late, and not in order: a while is read again
        time.sleep(_STORE_POLL_S)
        at = max(began, time.time() - _LATE_S)
        lines = list(_here(look(replace(wanted, since=as_in_lines(at))), missing))
        _tell([line for line in lines if line[1] not in seen], show)
        seen = {line[1] for line in lines}
    return DONE if told and not missing else FAILED


def _here(lines: Iterable[Line], missing: set[str]) -> Iterator[Line]:
    """Those that are of the log; each reason why there are no more is said once."""
    for line in lines:
        if line[2].get("event") != "log.missing" or line[2].get("logger") != "distfs.http":
            yield line
        elif (why := str(line[2].get("message"))) not in missing:
            missing.add(why)
            complain(why)


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
