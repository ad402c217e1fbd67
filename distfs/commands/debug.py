"""``distfs debug bundle``: in one file, without secrets, what tells somebody who was not there what happened."""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, fields
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import distfs
from distfs.commands.doctor import look
from distfs.commands.nodes import entries
from distfs.commands.operator import operator
from distfs.commands.running_service import ask_service, ask_text, configured_url
from distfs.commands.status import told
from distfs.config.settings import Config
from distfs.errors import ConfigError, DistfsError
from distfs.metadb import embedded_postgres
from distfs.process.output import COMMON_CODES, DONE, Parser, tell
from distfs.process.redact import redacted, tokenless
from distfs.quantity import size

_CODES = f"exit code: 0: done; {COMMON_CODES}"
_MEANING = "write a file for whoever is to find out what is wrong: versions, settings, state, stacks, logs; no secret"

#: Of each file of a log, its end.
_MOST_OF_A_LOG = 4 << 20
#: A service that is in trouble is slow, and this is when it is asked.
_WITHIN_S = 15.0


def add_debug(commands: argparse._SubParsersAction[Parser]) -> None:
    """What was parsed carries ``look``, what to do."""
    acts = commands.add_parser("debug", help="gather what helps to find a fault").add_subparsers(
        required=True, metavar="ACT"
    )
    bundle = acts.add_parser("bundle", help=_MEANING, description=f"{_MEANING}.", epilog=_CODES)
    bundle.add_argument("file", metavar="FILE", type=Path, help="a new file, such as distfs.tar.gz")
    bundle.add_argument(
        "--metadb", metavar="URL", help="postgresql://..., or embedded:DIR/metadb (metadb.url)"
    )
    bundle.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
    bundle.set_defaults(look=lambda config, given: write_bundle(config, given.file))


def write_bundle(config: Config, file: Path) -> int:
    """-> the exit code. What cannot be had is said in its place. Raises ConfigError when ``file`` cannot be made."""
    folder = f"distfs-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    try:
        with file.open("xb") as out, tarfile.open(fileobj=out, mode="w:gz") as bundle:
            for name, content in _contents(config):
                _add(bundle, f"{folder}/{name}", tokenless("\n".join(map(redacted, content.split("\n")))))
            out.flush()
    except FileExistsError:
        raise ConfigError(f"{file} is there already: name another") from None
    except OSError as e:
        with suppress(OSError):
            file.unlink()
        raise ConfigError(f"cannot write {file}: {e.strerror or e}: name another") from e
    tell(
        f"{file} ({size(file.stat().st_size)}) holds versions, settings, state, stacks and logs: look it through"
    )
    return DONE


def _add(bundle: tarfile.TarFile, name: str, content: str) -> None:
    data = content.encode("utf-8", "replace")
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    bundle.addfile(entry, io.BytesIO(data))


def _contents(config: Config) -> Iterator[tuple[str, str]]:
    """Each file's name and text."""
    yield "versions.json", _json(_versions())
    yield "settings.txt", _settings(config)
    yield "doctor.json", _json([asdict(each) for each in look(config)])
    yield from _state(config)
    here = configured_url(config)
    yield "service.json", _json(ask_service(here, config.tls.ca, _WITHIN_S))
    for name, at in (("stacks.txt", "/debug/stacks"), ("metrics.txt", "/metrics")):
        yield name, ask_text(here, at, config.tls.ca, _WITHIN_S)
    for path in _logs(config):
        yield f"logs/{path.name}", _end_of(path)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


def _versions() -> dict[str, Any]:
    installed = sorted({f"{each.name} {each.version}" for each in distributions()})
    system = {"system": platform.platform(), "python": sys.version, "cores": os.cpu_count()}
    return {"distfs": distfs.__version__, **system, "installed": installed}


def _settings(config: Config) -> str:
    """As they count, after file and environment. What is not to be printed is said to be there, or not."""
    lines = []
    for section in fields(config):
        values = getattr(config, section.name)
        for each in fields(values):
            value = getattr(values, each.name)
            shown = repr(value) if each.repr or each.name == "url" else "(set)" if value else "(not set)"
            lines.append(f"{section.name}.{each.name}: {redacted(shown)}")
    return "\n".join(lines) + "\n"


def _state(config: Config) -> Iterator[tuple[str, str]]:
    gather: dict[str, Callable[[Any], str]] = {
        "status.json": lambda one: told(one, [], as_json=True)[0],
        "nodes.json": lambda one: _json(entries(one)),
    }
    try:
        with operator(config) as one:
            for name, act in gather.items():
                yield name, act(one)
    except DistfsError as e:
        yield "metadb.txt", f"MetaDB cannot be asked: {e}\n"


def _logs(config: Config) -> Iterator[Path]:
    metadb = embedded_postgres.folder_of(config.metadb.url)
    if metadb is not None and (metadb / "postgres.log").is_file():
        yield metadb / "postgres.log"
    if config.log.dir != "off":
        yield from sorted(Path(config.log_dir_of_up).glob("*.log"))


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _MOST_OF_A_LOG))
            return log.read(_MOST_OF_A_LOG).decode("utf-8", "replace")
    except OSError as e:
        return f"{path} cannot be read: {e.strerror}\n"
