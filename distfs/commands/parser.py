"""The operator's commands on the command line: their flags, their help, their exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from distfs import config_file as configuration
from distfs.commands.drain import drain, forget, undrain
from distfs.commands.fsck import fsck
from distfs.commands.nodes import show_nodes
from distfs.commands.operator import Operator, run
from distfs.commands.repair import repair
from distfs.commands.status import show_status
from distfs.commands.undelete import undelete
from distfs.config import Config

Given = argparse.Namespace

_CODES = "exit code: 0: done; 1: not done, for the reason on standard error; 130: interrupted"
_WAITING = (
    "exit code: 0: done, or not waited for; 1: refused, or nothing moved for --patience, for the reason on standard "
    "error; 130: interrupted, which stops only the waiting"
)
_FSCK = (
    "exit code: 0: every fragment is where it belongs; 1: fragments are missing or corrupt; 2: it could not be told, "
    "since a node or MetaDB cannot be asked; 130: interrupted"
)
_NODE = "its id, UUID or address, as `distfs nodes` shows them"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add every operator's command. A parsed one carries ``act``, what to do, and ``failed``, how failing exits."""

    def add(
        name: str, help: str, act: Callable[[Operator, Given], int], codes: str = _CODES, failed: int = 1
    ) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=help, description=f"{help}.", epilog=codes)
        parser.add_argument(
            "--metadb", metavar="URL", help="postgresql://..., or embedded:DIR/metadb (metadb.url)"
        )
        parser.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
        parser.set_defaults(act=act, failed=failed)
        return parser

    _json(add("nodes", "list the storage nodes: state, room, when last seen", _nodes))
    told = add("status", "show what is kept, how safe it is, what upkeep does and how services do", _status)
    _json(told)
    told.add_argument(
        "--service",
        metavar="URL",
        action="append",
        help="ask this one; repeatable (default: http.host, http.port)",
    )

    drained = add("drain", "empty a storage node, so that it can be unplugged", _drain, _WAITING)
    undrained = add(
        "undrain", "let a draining node take part again", lambda one, given: undrain(one, given.node)
    )
    forgot = add(
        "forget",
        "take a node that is gone or empty off the list; refused when data would be lost",
        lambda one, given: forget(one, given.node),
    )
    for parser in (drained, undrained, forgot):
        parser.add_argument("node", metavar="NODE", help=_NODE)

    repaired = add("repair", "watch until the redundancy is full again", _repair, _WAITING)
    repaired.add_argument(
        "--now", action="store_true", help="do not wait upkeep.repair_delay for nodes that are down now"
    )
    for parser in (drained, repaired):
        _waiting(parser)

    checked = add("fsck", "compare MetaDB with the storage nodes, both ways", _fsck, _FSCK, failed=2)
    checked.add_argument("--deep", action="store_true", help="let the nodes read every fragment again")
    checked.add_argument("--no-note", action="store_true", help="do not note for repair what is found")
    _json(checked)

    restored = add("undelete", "take a deleted file back out of the trash", _undelete)
    restored.add_argument("uuid", metavar="UUID", help="the file's id")


def operate(config: Config, given: Given) -> int:
    """Run the command that was parsed; -> its exit code."""
    config = configuration.override(config, "metadb", url=given.metadb)
    return run(config, lambda one: int(given.act(one, given)), given.failed)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs: all of it, sizes in bytes")


def _waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="start it and come back at once")
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="stop waiting when nothing moved for so long (default: %(default)s)",
    )


def _nodes(operator: Operator, given: Given) -> int:
    return show_nodes(operator, as_json=given.json)


def _status(operator: Operator, given: Given) -> int:
    return show_status(operator, given.service or [], as_json=given.json)


def _drain(operator: Operator, given: Given) -> int:
    return drain(operator, given.node, wait=not given.no_wait, patience=given.patience)


def _repair(operator: Operator, given: Given) -> int:
    return repair(operator, now=given.now, wait=not given.no_wait, patience=given.patience)


def _fsck(operator: Operator, given: Given) -> int:
    return fsck(operator, deep=given.deep, note=not given.no_note, as_json=given.json)


def _undelete(operator: Operator, given: Given) -> int:
    return undelete(operator, given.uuid)
