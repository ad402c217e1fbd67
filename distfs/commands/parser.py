"""The operator's commands on the command line: their flags, their help, their exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from distfs.commands import cluster_key, link
from distfs.commands.alerts import show_alerts
from distfs.commands.audit import audited
from distfs.commands.drain import drain, forget, plan_drain, trust, undo_forget, undrain
from distfs.commands.fsck import fsck
from distfs.commands.nodes import show_nodes
from distfs.commands.operator import Operator, run
from distfs.commands.rebalance import plan_rebalance, rebalance
from distfs.commands.repair import repair
from distfs.commands.running_service import service_place, service_url
from distfs.commands.settings import settings
from distfs.commands.status import show_status, watch_status
from distfs.commands.token import create, list_tokens, revoke, rotate
from distfs.commands.trash import empty_trash, list_trash
from distfs.commands.undelete import undelete
from distfs.config import file as configuration
from distfs.config.settings import Config
from distfs.errors import ConfigError, Refused
from distfs.local.data_folder import check_is_meant
from distfs.process.output import COMMON_CODES, FAILED, NOT_TOLD, Parser, complain

Given = argparse.Namespace

_CODES = f"exit code: 0: done; 1: not done, for the reason on standard error; {COMMON_CODES}"
_WAITING = (
    "exit code: 0: done, or not waited for; 1: refused, or nothing moved for --patience, for the reason on standard "
    f"error; {COMMON_CODES}, which stops only the waiting"
)
_DRAIN = _WAITING.replace(
    "nothing moved for --patience", "nothing moved for --patience, or it would not get empty"
)
_FSCK = (
    f"exit code: 0: every fragment is where it belongs; 1: fragments are missing or corrupt; {COMMON_CODES}"
)
_STATUS = (
    "exit code: 0: told; with --check: 0: all is well; 1: something is lacking, and no file is lost; 2: there are "
    "slices with too few fragments where they belong; 3: it could not be told, whatever the reason. Else: "
    f"{COMMON_CODES}"
)


@dataclass(frozen=True)
class _Command:
    """One command as ``_COMMANDS`` lists it."""

    name: str
    help: str
    act: Callable[[Operator, Given], int]
    flags: tuple[Callable[[argparse.ArgumentParser], object], ...] = ()
    codes: str = _CODES
    failed: int = FAILED
    changes: bool = True  # it does something to the cluster


def add_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add every operator's command. A parsed one carries ``act``, what to do, and ``failed``, how failing exits."""
    for each in _COMMANDS:
        parser = commands.add_parser(
            each.name, help=each.help, description=f"{each.help}.", epilog=each.codes
        )
        parser.add_argument(
            "--metadb", metavar="URL", help="postgresql://..., or embedded:DIR/metadb (metadb.url)"
        )
        parser.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
        parser.set_defaults(act=each.act, failed=each.failed, changes=each.changes)
        for add_to in each.flags:
            add_to(parser)


def operate(config: Config, given: Given) -> int:
    """Run the command that was parsed; -> its exit code."""
    config = configuration.override(config, "metadb", url=given.metadb)

    def act(one: Operator) -> int:
        data = Path(config.local.data)
        try:
            check_is_meant(data, one.meta, one.deadline(), url=given.metadb, config=given.config)
        except ConfigError as e:
            if given.changes:
                raise
            complain(f"distfs: {e}")
        return audited(config, given, lambda: int(given.act(one, given)))

    return run(config, act, given.failed)


# --- flags ------------------------------------------------------------------------------------------------


def _flag(name: str, help: str) -> Callable[[argparse.ArgumentParser], object]:
    return lambda parser: parser.add_argument(name, action="store_true", help=help)


_json = _flag("--json", "for programs: all of it, sizes in bytes")
_dry_run = _flag("--dry-run", "print what would move where, and change nothing")
_now = _flag("--now", "do not wait upkeep.repair_delay for nodes that are down or unreachable now")
_adopt = _flag("--adopt", "let the cluster agree on what is configured here")
_deep = _flag("--deep", "let the nodes read every fragment again")
_undo = _flag("--undo", "let a node that was forgotten, named by its id or UUID of then, join again")
_check = _flag("--check", "for scripts: the exit code says how well the cluster is")
_no_note = _flag("--no-note", "do not note for repair what is found")


def _node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", metavar="NODE", help="its id, UUID or address, as `distfs nodes` shows them")


def _uuid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uuid", metavar="UUID", help="the file's id")


def _trash_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("list", "empty"), help="what is in the trash; erase it for good")
    parser.add_argument(
        "uuid", metavar="UUID", nargs="?", help="empty: this file alone (default: all of them)"
    )


def _token_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=("create", "list", "revoke", "rotate"), help="what to do; create and rotate print it"
    )
    parser.add_argument("id", metavar="ID", nargs="?", help="revoke, rotate: the token's, as list shows it")
    parser.add_argument(
        "--first", action="store_true", help="create: an administrator's, if there is no token yet"
    )
    parser.add_argument("--all", action="store_true", help="list: also what expired or was revoked")
    parser.add_argument(
        "--overlap", metavar="TIME", default="0s", help="rotate: the old one holds for so long"
    )
    for flag, metavar, meaning in _TERMS:
        parser.add_argument(flag, metavar=metavar, help=f"create: {meaning}")


_TERMS = (
    ("--owner", "NAME", "whose it is, and whose files are that it uploads"),
    ("--scopes", "LIST", "what it may, of upload,download,list,delete,admin"),
    ("--name", "TEXT", "for lists"),
    ("--expires", "TIME", "after so long (default: never)"),
    ("--quota", "SIZE", "of all files of its owner together"),
    ("--max-file-size", "SIZE", "of each file it uploads"),
    ("--max-uploads", "N", "at once, to one service"),
    ("--weight", "W", "of its transfers, under a cap"),
    ("--cap-in", "RATE", "of its uploads together"),
    ("--cap-out", "RATE", "of its downloads together"),
    ("--policies", "LIST", "that its uploads may have"),
)


def _link_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", choices=("create", "list", "revoke"), help="what to do; create prints its URL"
    )
    parser.add_argument(
        "of",
        metavar="UUID|URL|ID",
        nargs="?",
        help="create: the file to download (default: the link takes uploads); revoke: the link, by its URL or by its "
        "id, as list shows it",
    )
    parser.add_argument(
        "--token", metavar="ID", help="create: with whose rights (default: the token in DISTFS_TOKEN)"
    )
    parser.add_argument(
        "--url",
        type=service_url,
        help="create: of the service, as clients reach it (default: http.host, http.port)",
    )
    parser.add_argument("--owner", metavar="NAME", help="list: only those of this owner")
    for flag, metavar, meaning in _LINK_TERMS:
        parser.add_argument(flag, metavar=metavar, help=f"create: {meaning}")


_LINK_TERMS = (
    ("--expires-in", "TIME", "good for so long (default: a day)"),
    ("--expires", "MOMENT", "or until then, such as 2030-01-31T12:00:00Z"),
    ("--network", "NET", "of clients, such as 192.0.2.0/24"),
    ("--downloads", "N", "that may be (default: any number)"),
    ("--range", "BYTES", "of the file that may be had, such as 0-1023"),
    ("--name", "NAME", "under which a download is saved"),
    ("--files", "N", "that may be uploaded; 0: any number (default: 1)"),
    ("--max-size", "SIZE", "of each file that is uploaded"),
    ("--policy", "NAME", "of uploads"),
)


def _key_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=cluster_key.WORDS,
        help="which keys there are; make a new one beside the old; let the new one alone count",
    )
    parser.add_argument(
        "--force", action="store_true", help="retire: do not wait for nodes and services that may not have it"
    )


def _service(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--service",
        metavar="URL",
        action="append",
        type=service_place,
        help="ask this one; repeatable (default: http.host, http.port)",
    )


def _watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const=2.0,
        type=_interval,
        help="show it again and again, so often (%(const)s), until Ctrl-C",
    )


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 3600")
    return seconds


def _waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="start it and come back at once")
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="stop waiting when nothing moved for so long (default: %(default)s)",
    )


# --- from what was given to what is done ------------------------------------------------------------------


def _nodes(operator: Operator, given: Given) -> int:
    return show_nodes(operator, as_json=given.json)


def _status(operator: Operator, given: Given) -> int:
    if given.watch:
        if given.json or given.check:
            raise Refused(
                "--watch shows it to people: for programs run `distfs status --json` or --check again"
            )
        watch_status(operator, given.service or [], given.watch)
    return show_status(operator, given.service or [], as_json=given.json, check=given.check)


def _alerts(operator: Operator, given: Given) -> int:
    return show_alerts(operator, as_json=given.json)


def _drain(operator: Operator, given: Given) -> int:
    if given.dry_run:
        return plan_drain(operator, given.node)
    return drain(operator, given.node, wait=not given.no_wait, patience=given.patience)


def _undrain(operator: Operator, given: Given) -> int:
    return undrain(operator, given.node)


def _trust(operator: Operator, given: Given) -> int:
    return trust(operator, given.node)


def _forget(operator: Operator, given: Given) -> int:
    return (undo_forget if given.undo else forget)(operator, given.node)


def _rebalance(operator: Operator, given: Given) -> int:
    return (plan_rebalance if given.dry_run else rebalance)(operator, as_json=given.json)


def _repair(operator: Operator, given: Given) -> int:
    return repair(operator, now=given.now, wait=not given.no_wait, patience=given.patience)


def _fsck(operator: Operator, given: Given) -> int:
    return fsck(operator, deep=given.deep, note=not given.no_note, as_json=given.json)


def _undelete(operator: Operator, given: Given) -> int:
    return undelete(operator, given.uuid)


def _trash(operator: Operator, given: Given) -> int:
    if given.what == "list":
        return list_trash(operator, as_json=given.json)
    return empty_trash(operator, given.uuid, wait=not given.no_wait, patience=given.patience)


def _terms(given: Given, flags: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Those of ``flags`` that were given, by their names."""
    names = [flag[2:].replace("-", "_") for flag, *_ in flags]
    return {name: value for name in names if (value := getattr(given, name)) is not None}


def _token(operator: Operator, given: Given) -> int:
    terms = _terms(given, _TERMS)
    match given.what:
        case "create":
            return create(operator, terms, first=given.first, as_json=given.json)
        case "list":
            return list_tokens(operator, all=given.all, as_json=given.json)
    if not given.id:
        raise Refused(f"{given.what} which token? `distfs token list` shows their ids")
    return revoke(operator, given.id) if given.what == "revoke" else rotate(operator, given.id, given.overlap)


def _link(operator: Operator, given: Given) -> int:
    match given.what:
        case "create":
            return link.create(operator, given, _terms(given, _LINK_TERMS))
        case "list":
            return link.list_links(operator, given.owner, as_json=given.json)
    return link.revoke(operator, given)


def _cluster_key(operator: Operator, given: Given) -> int:
    if given.what == "show-id":
        return cluster_key.show_ids(operator)
    return (
        cluster_key.retire(operator, given.force) if given.what == "retire" else cluster_key.rotate(operator)
    )


def _settings(operator: Operator, given: Given) -> int:
    return settings(operator, adopt=given.adopt)


_COMMANDS = (
    _Command("nodes", "list the storage nodes: state, room, when last seen", _nodes, (_json,), changes=False),
    _Command(
        "status",
        "show what is kept, how safe it is, what upkeep does and how services do",
        _status,
        (_json, _service, _check, _watch),
        _STATUS,
        failed=NOT_TOLD,
        changes=False,
    ),
    _Command(
        "alerts",
        "show what burns now, and the command to run",
        _alerts,
        (_json,),
        f"exit code: 0: nothing; 1: something; 3: no service looks, or it could not be told; {COMMON_CODES}",
        failed=NOT_TOLD,
        changes=False,
    ),
    _Command(
        "drain",
        "empty a storage node, so that it can be unplugged",
        _drain,
        (_node, _waiting, _dry_run),
        _DRAIN,
    ),
    _Command("undrain", "let a draining node take part again", _undrain, (_node,)),
    _Command(
        "trust", "believe a node whose data folder lost its secret once more by its UUID", _trust, (_node,)
    ),
    _Command(
        "forget",
        "take a node that is gone or empty off the list; refused when data would be lost",
        _forget,
        (_node, _undo),
    ),
    _Command(
        "rebalance",
        "let nodes be made equally full at once: plan anew, try again what was postponed",
        _rebalance,
        (_dry_run, _json),
    ),
    _Command("repair", "watch until the redundancy is full again", _repair, (_now, _waiting), _WAITING),
    _Command(
        "fsck",
        "compare MetaDB with the storage nodes, both ways",
        _fsck,
        (_deep, _no_note, _json),
        _FSCK,
        failed=NOT_TOLD,
        changes=False,
    ),
    _Command("undelete", "take a deleted file back out of the trash", _undelete, (_uuid,)),
    _Command(
        "trash",
        "list the deleted files that can be undeleted, or erase them for good, so that their room is free",
        _trash,
        (_trash_words, _json, _waiting),
        _WAITING,
    ),
    _Command("token", "say who may use the service, and for what: tokens", _token, (_token_words, _json)),
    _Command(
        "link",
        "let who has no token download a file, or send one: make signed links, list them, end them",
        _link,
        (_link_words, _json),
    ),
    _Command(
        "cluster-key",
        "show or change the key by which services and storage nodes know each other",
        _cluster_key,
        (_key_words,),
    ),
    _Command(
        "settings",
        "compare the times that the whole cluster must hold to with those configured here",
        _settings,
        (_adopt,),
        "exit code: 0: they are the same; 1: they differ, or it could not be told; 130: interrupted",
    ),
)
