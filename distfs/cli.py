"""The command ``distfs``: reads the configuration once and hands each part its own. The composition root."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import distfs
from distfs.commands.audit import audited, show
from distfs.commands.backup import backup, restore
from distfs.commands.debug import add_debug
from distfs.commands.display import size
from distfs.commands.doctor import add_doctor
from distfs.commands.logs import add_logs
from distfs.commands.metadb import add_metadb
from distfs.commands.migrate import add_migrate, check_schema
from distfs.commands.parser import add_commands, operate
from distfs.commands.status import or_not_told
from distfs.commands.tls import add_tls
from distfs.config import file as configuration
from distfs.config.settings import Config, MetaDBConfig
from distfs.deadline import Deadline
from distfs.local import cluster as local_cluster
from distfs.local import supervisor
from distfs.local.data_folder import check_is_meant, end
from distfs.meta import MetaDB
from distfs.process import output, parent_watch
from distfs.serve import Settings, serve
from distfs.storage.disk.home import make_home, quoted
from distfs.telemetry.logs import setup_logging

#: For all of `distfs up` to stop after its service, which has `http.drain_timeout`.
_DOWN_LIMIT_S = 60.0
_NODE_CODES = (
    f"exit code: 0: the folder is a node's; 1: it cannot be one, for the reason told; {output.COMMON_CODES}"
)


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code; ``--help`` of each command tells its own."""
    return output.command("distfs", lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(words: Sequence[str]) -> int:
    if words[:1] == ["status"] and "--check" in words:
        return or_not_told(lambda: _run_command(words))
    return _run_command(words)


def read_serve(words: Sequence[str], environ: Mapping[str, str]) -> Callable[[], int]:
    """``serve`` with the flags and settings that are read here. Raises ConfigError."""
    given = _parser().parse_args(words)
    config = configuration.load(given.config, environ, output.warner("distfs", of_parent=True))
    return lambda: output.command("distfs", lambda: _serve(config, given))


def _run_command(words: Sequence[str]) -> int:
    given = _parser().parse_args(words)
    if given.command == "audit":  # of files that may be of elsewhere
        return show(given.file, holds=given.holds, as_json=given.json)
    of_parent = "exit_with_parent" in given and given.exit_with_parent
    config = configuration.load(given.config, warn=output.warner("distfs", of_parent=of_parent))
    if "act" in given:
        return operate(config, given)
    if "look" in given:  # at what may not run
        return int(given.look(configuration.override(config, "metadb", url=given.metadb), given))
    if "does" in given:  # without looking at the cluster first
        config = configuration.override(config, "metadb", url=getattr(given, "metadb", None))
        return audited(config, given, lambda: given.does(config, given))
    match given.command:
        case "up":
            _up(config, given)
        case "down":
            _down(config, given)
        case "serve":
            return _serve(config, given)
        case "migrate":
            return _migrate(config, given)
        case "backup":
            backup(_metadb(config, given), given.file)
        case "restore":
            audited(config, given, lambda: restore(_metadb(config, given), given.file))
        case "node":
            _node_init(config, given)
    return output.DONE


def _parser() -> argparse.ArgumentParser:
    parser = output.Parser(
        prog="distfs", description="A file service that keeps each file in slices over many storage nodes."
    )
    parser.add_argument("--version", action="version", version=f"distfs {distfs.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up, down = _add_up_and_down(commands)
    serve = commands.add_parser(
        "serve", help="start one HTTP service; run as many as you like", epilog=output.PART_CODES
    )
    serve.add_argument(parent_watch.FLAG, action="store_true", help=parent_watch.FLAG_HELP)

    migrate = add_migrate(commands)
    saving = [_add_saving(commands, *each) for each in _SAVING]

    node = commands.add_parser("node", help="make a folder a storage node's")
    acts = node.add_subparsers(required=True, metavar="ACT")
    init_help = (
        "make an empty folder a new node's, or say that a node's folder was moved to another disk on purpose"
    )
    init = acts.add_parser("init", help=init_help, description=f"{init_help}.", epilog=_NODE_CODES)
    init.add_argument("--data", metavar="DIR", help="the folder (node.data)")

    for add in (_add_audit, add_debug, add_doctor, add_logs, add_metadb, add_tls):
        add(commands)

    for command in (up, serve):
        command.add_argument("--host", metavar="H", help="address to listen on (http.host)")
        command.add_argument(
            "--port", type=int, metavar="P", help="to listen on; 0: any free one (http.port)"
        )
    for command in (serve, migrate, *saving):
        command.add_argument("--metadb", metavar="URL", help="PostgreSQL, postgresql://... (metadb.url)")
    for command in (up, down, serve, migrate, init, *saving):
        command.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
    add_commands(commands)
    return parser


def _add_up_and_down(
    commands: argparse._SubParsersAction[output.Parser],
) -> tuple[output.Parser, output.Parser]:
    up = commands.add_parser(
        "up",
        help="start everything on this machine: MetaDB, storage nodes, a service",
        epilog=output.PART_CODES,
    )
    up.add_argument("--data", metavar="DIR", help="folder of all data (local.data)")
    up.add_argument("--nodes", type=int, metavar="N", help="storage nodes to start (local.nodes)")
    up.add_argument(
        "--join", action="store_true", help="add a new data folder to a cluster with nodes elsewhere"
    )

    down = commands.add_parser(
        "down",
        help="stop what `distfs up` started, and wait until all of it is gone",
        epilog=f"exit code: 0: nothing of it runs now; 1: it runs on, for the reason told; {output.COMMON_CODES}, "
        "which stops only the waiting",
    )
    down.add_argument("--data", metavar="DIR", help="which one: its folder of all data (local.data)")
    return up, down


def _add_audit(commands: argparse._SubParsersAction[output.Parser]) -> None:
    acts = commands.add_parser("audit", help="look through an audit log").add_subparsers(
        required=True, metavar="ACT"
    )
    verify_help = "say whether files of an audit log are as they were written, and else which lines are not"
    codes = "exit code: 0: they are; 1: they are not; 2: a flag is wrong; 3: a file cannot be read; 130: interrupted"
    verify = acts.add_parser("verify", help=verify_help, description=f"{verify_help}.", epilog=codes)
    verify.add_argument(
        "file", metavar="FILE", nargs="+", type=Path, help="in any order; those put aside, too"
    )
    verify.add_argument(
        "--holds", metavar="HASH", default="", help="a hash noted earlier, which a line must have still"
    )
    verify.add_argument("--json", action="store_true", help="for programs")


_SAVING = (
    ("backup", "write MetaDB to a file, while everything runs"),
    ("restore", "load what `distfs backup` wrote into a MetaDB that is empty"),
)


def _add_saving(
    commands: argparse._SubParsersAction[output.Parser], name: str, purpose: str
) -> output.Parser:
    codes = f"exit code: 0: done; 1: not done, for the reason on standard error; {output.COMMON_CODES}"
    command = commands.add_parser(name, help=purpose, description=f"{purpose}.", epilog=codes)
    command.add_argument(
        "file",
        metavar="FILE",
        help="SQL that psql understands; it holds no bytes of files (backup: - is standard output)",
    )
    return command


def _node_init(config: Config, given: argparse.Namespace) -> None:
    config = configuration.override(config, "node", data=given.data)
    folder = Path(config.node.data).absolute()
    node = make_home(folder).node
    room = shutil.disk_usage(folder)
    output.tell(
        f"{folder} is storage node {node}'s, on a disk of {size(room.total)} with {size(room.free)} free; "
        f"start it: python -m distfs.storage_server --port PORT --data {quoted(folder)}"
    )


def _up(config: Config, given: argparse.Namespace) -> None:
    config = configuration.override(config, "http", host=given.host, port=given.port)
    config = configuration.override(config, "local", data=given.data, nodes=given.nodes)
    setup_logging(config.log, part=supervisor.PARENT)
    local_cluster.run(config, supervisor.Program("distfs", main, read_serve), given.config, join=given.join)


def _down(config: Config, given: argparse.Namespace) -> None:
    data = Path(configuration.override(config, "local", data=given.data).local.data).absolute()
    pid = end(data, config.http.drain_timeout + _DOWN_LIMIT_S)
    output.tell(
        f"`distfs up` (process {pid}) and its parts have stopped; the data is in {data}"
        if pid
        else f"no `distfs up` runs in {data}"
    )


def _serve(config: Config, given: argparse.Namespace) -> int:
    as_read = config
    config = configuration.override(config, "http", host=given.host, port=given.port)
    config = configuration.override(config, "metadb", url=given.metadb)
    settings = Settings(config, as_read, lambda: configuration.load(given.config))
    return serve(settings, exit_with_parent=given.exit_with_parent)


def _metadb(config: Config, given: argparse.Namespace) -> MetaDBConfig:
    """For a command whose matter is PostgreSQL rather than the cluster."""
    setup_logging(configuration.override(config, "log", level="ERROR").log)
    return configuration.override(config, "metadb", url=given.metadb).metadb


def _migrate(config: Config, given: argparse.Namespace) -> int:
    config = configuration.override(config, "metadb", url=given.metadb)
    setup_logging(config.log)
    if given.check:
        return check_schema(config)
    audited(config, given, lambda: _change_schema(config, given))
    return output.DONE


def _change_schema(config: Config, given: argparse.Namespace) -> None:
    meta = MetaDB(config.metadb)
    try:
        data, limit = Path(config.local.data), Deadline(config.metadb.statement_timeout)
        check_is_meant(data, meta, limit, url=given.metadb, config=given.config)
        if given.finish:
            meta.finish()
            output.tell("no service of an older release may run from now on")
            return
        applied = meta.migrate(given.roles)
    finally:
        meta.close()
    if given.roles:
        output.tell(f"each role's password is in a file of its name in {given.roles}")
    output.tell(f"applied migrations {', '.join(map(str, applied))}" if applied else "MetaDB is up to date")
