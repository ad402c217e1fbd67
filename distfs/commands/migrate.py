"""``distfs migrate``: how it is called, and ``--check``: MetaDB's schema beside this release."""

from __future__ import annotations

import argparse
from pathlib import Path

from distfs.config.settings import Config
from distfs.errors import ConfigError
from distfs.meta import MetaDB
from distfs.metadb.schema import latest
from distfs.process import output
from distfs.process.output import DONE, FAILED, complain, tell
from distfs.quantity import counted


def add_migrate(commands: argparse._SubParsersAction[output.Parser]) -> output.Parser:
    migrate: output.Parser = commands.add_parser(
        "migrate",
        help="bring MetaDB's schema to this version's",
        epilog="exit code: 0: done; with --check: this release runs with MetaDB as it is; 1: it does not; "
        f"{output.COMMON_CODES}",
    )

    ways = migrate.add_mutually_exclusive_group()
    ways.add_argument(
        "--check",
        action="store_true",
        help="change nothing: tell what would be done, and whether this release may run with MetaDB as it is",
    )
    ways.add_argument(
        "--finish",
        action="store_true",
        help="no service of an older release runs any more: none may from now on, and what only newer ones read is "
        "written",
    )
    ways.add_argument(
        "--roles",
        metavar="DIR",
        type=Path,
        help="make a role in MetaDB for each part; their passwords are read from DIR/<role>, or made there",
    )
    return migrate


def check_schema(config: Config) -> int:
    """Change nothing -> 0: this release runs with MetaDB as it is; 1: it does not, or not yet. Raises Unavailable."""
    meta = MetaDB(config.metadb)
    try:
        steps, ahead = meta.pending()
    except ConfigError as e:
        complain(f"distfs: this release may not run with MetaDB: {e}")
        return FAILED
    finally:
        meta.close()
    for step in steps:
        needs = (
            f", and then takes no service that knows fewer than {step.min_version}"
            if step.min_version
            else ""
        )
        tell(f"would apply {step.number:04d} {step.name.replace('_', ' ')}{needs}")
    if steps:
        complain(f"distfs: this release needs {counted(len(steps), 'migration')} more: run `distfs migrate`")
        return FAILED
    beyond = f", which has {counted(ahead, 'migration')} more, of a later release" if ahead else ""
    tell(f"this release (migration {latest()}) runs with MetaDB{beyond}")
    return DONE
