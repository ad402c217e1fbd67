"""``distfs metadb``: MetaDB saved to a copy, and made anew from one.

Unlike the SQL of ``distfs backup`` a copy needs no program of PostgreSQL's, neither to write nor to read it, and is
checked to the last byte before anything is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from distfs.commands.backup import STDOUT, is_sql, not_written, note, require_one, running
from distfs.commands.metadb_rebuild import rebuild, restore_from_nodes
from distfs.config import file as configuration
from distfs.config.settings import Config
from distfs.deadline import Deadline
from distfs.errors import ConfigError, Corrupt, Refused
from distfs.local.data_folder import cluster_in
from distfs.meta import MetaDB
from distfs.metadb.copies import Header
from distfs.process import output
from distfs.quantity import size
from distfs.telemetry.logs import setup_logging

_CODES = f"exit code: 0: done; 1: not done, for the reason on standard error; {output.COMMON_CODES}"

Given = argparse.Namespace


def add_metadb(commands: argparse._SubParsersAction[output.Parser]) -> None:
    """What was parsed carries ``does``, what to do."""
    metadb = commands.add_parser("metadb", help="save MetaDB to a copy, and make it anew from one")
    acts = metadb.add_subparsers(required=True, metavar="ACT")
    saved = _add(acts, "backup", "write a copy of MetaDB, while everything runs", _backup)
    saved.add_argument(
        "file", metavar="FILE", nargs="?", help="default: metadb-TIME.copy; - is standard output"
    )
    loaded = _add(acts, "restore", "make an empty MetaDB what a copy is of, all or nothing", _restore)
    loaded.add_argument(
        "file", metavar="FILE", type=Path, nargs="?", help="what `distfs metadb backup` wrote"
    )
    loaded.add_argument(
        "--from-nodes",
        action="store_true",
        help="the newest copy that the cluster keeps, and what came since",
    )
    made = _add(acts, "rebuild", "make a lost MetaDB anew from what the storage nodes keep", rebuild)
    made.add_argument("--from-nodes", action="store_true", required=True, help="the only way there is")
    for each in (loaded, made):
        each.add_argument(
            "--cluster", metavar="UUID", type=UUID, help="whose (default: of the storage nodes in local.data)"
        )
    made.add_argument("--dry-run", action="store_true", help="read the nodes and tell, but write no file")
    made.add_argument(
        "--finish", action="store_true", help="let upkeep put aside again what no file in MetaDB names"
    )


def _add(acts: Any, name: str, what: str, act: Callable[[Config, Given], int | None]) -> output.Parser:
    parser: output.Parser = acts.add_parser(name, help=what, description=f"{what}.", epilog=_CODES)
    parser.add_argument(
        "--metadb", metavar="URL", help="postgresql://..., or embedded:DIR/metadb (metadb.url)"
    )
    parser.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
    parser.set_defaults(does=act, what=name, changes=name != "backup")
    return parser


# --- a copy as a file ---------------------------------------------------------------------------------------


def _backup(config: Config, given: Given) -> None:
    setup_logging(configuration.override(config, "log", level="ERROR").log)
    require_one(config.metadb.url)
    name = given.file or f"metadb-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.copy"
    straight = name in STDOUT or (Path(name).exists() and not Path(name).is_file())
    with running(config.metadb) as where, contextlib.closing(MetaDB(config.metadb)) as meta:
        if meta.known_cluster(Deadline(config.metadb.statement_timeout)) is None:
            raise Refused(f"the MetaDB at {where} is empty: name the one you mean with --metadb")
        try:
            with _straight(name) if straight else _whole(Path(name).resolve()) as out:
                meta.copy_to(out.write)
                out.flush()
        except OSError as e:
            raise not_written(name, e) from e
        note(config.metadb)
    if not straight:
        written = size(Path(name).stat().st_size)
        output.tell(
            f"a copy of MetaDB is in {name}, {written}; keep it secret, and elsewhere: it holds the cluster's key"
        )


def _straight(name: str) -> IO[bytes]:
    """What is no regular file is written to as it is."""
    return open(os.dup(1) if name in STDOUT else name, "wb")


@contextlib.contextmanager
def _whole(place: Path) -> Iterator[IO[bytes]]:
    """A file that is there whole or not at all, for its owner alone."""
    fresh = place.with_name(f"{place.name}.partial")
    try:
        with open(fresh, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(place)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def _restore(config: Config, given: Given) -> int:
    if given.file and given.from_nodes:
        raise ConfigError("there is one copy to restore from: give either FILE or --from-nodes")
    if not (given.file or given.from_nodes):
        raise ConfigError("restore what? Name a FILE that `distfs metadb backup` wrote, or give --from-nodes")
    if given.from_nodes:
        return restore_from_nodes(config, given)
    setup_logging(configuration.override(config, "log", level="ERROR").log)
    try:
        file = given.file.open("rb")
    except OSError as e:
        raise Refused(
            f"cannot read {given.file}: {e.strerror}; name a file that `distfs metadb backup` wrote"
        ) from e
    with file:
        _check_whose(config, given, file)
        with running(config.metadb) as where, contextlib.closing(MetaDB(config.metadb)) as meta:
            try:
                header, applied = meta.load_copy(file)
            except Corrupt as e:
                raise Refused(f"{given.file}: {e}; take another copy") from e
    more = f"; applied migrations {', '.join(map(str, applied))}" if applied else ""
    at = datetime.fromtimestamp(header.taken_at, UTC)
    output.tell(f"the MetaDB at {where} is as it was at {at:%Y-%m-%d %H:%M:%S} UTC{more}")
    return output.DONE


def _check_whose(config: Config, given: Given, file: IO[bytes]) -> None:
    """Raises ConfigError for the copy of another cluster than that of the nodes here, unless the command line says
    which MetaDB is meant; Refused for no copy."""
    try:
        theirs = Header.read(file).cluster
    except Corrupt as e:
        remedy = "name a file that `distfs metadb backup` wrote"
        if is_sql(file):
            remedy = f"it is SQL, which `distfs restore {given.file}` loads"
        raise Refused(f"{given.file}: {e}; {remedy}") from e
    ours = cluster_in(Path(config.local.data))
    if given.metadb or ours in (None, theirs):
        return
    raise ConfigError(
        f"{given.file} is of cluster {theirs}, the storage nodes in {config.local.data} are of {ours}: "
        "name the MetaDB that you mean with --metadb"
    )
