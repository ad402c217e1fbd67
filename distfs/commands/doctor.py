"""``distfs doctor``: what is wrong with this machine and its cluster, and the line that mends it.

It changes nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace

import distfs
from distfs.agreement import times_of
from distfs.commands.operator import PATIENCE_S
from distfs.commands.running_service import ask_service, configured_url
from distfs.commands.status import is_running
from distfs.config.reach import check_reach
from distfs.config.settings import Config, Seconds
from distfs.deadline import Deadline
from distfs.errors import Busy, ConfigError, DistfsError, OutcomeUnknown
from distfs.formats.coding import code_for
from distfs.formats.compression import REMEDY, check_installed, library
from distfs.local.machine import Finding, Level, examine, in_order, is_wrong
from distfs.meta import MetaDB
from distfs.metadb import embedded_postgres
from distfs.metadb.schema import latest
from distfs.model import Node
from distfs.peers.directory import NodeDirectory
from distfs.process.output import COMMON_CODES, DONE, FAILED, Parser, tell
from distfs.telemetry.logs import setup_logging
from distfs.tls import contexts
from distfs.upkeep.db import UpkeepDB

CODES = f"exit code: 0: nothing has to be done; 1: something has, as told; {COMMON_CODES}"
_MEANING = "look for what is wrong with this machine and its cluster, and name the line that mends it"

#: For one question to MetaDB or a node.
_LIMIT_S = 5.0
#: A clock that is off by more disturbs what is compared between machines: ages, ends of tokens and certificates.
_CLOCK_S = 2.0
_CLOCK_REMEDY = "run chrony or systemd-timesyncd on both machines"
#: Connections to MetaDB beside those of one service: nodes' heartbeats, upkeep, commands.
_OTHER_CONNECTIONS = 16


def add_doctor(commands: argparse._SubParsersAction[Parser]) -> None:
    """What was parsed carries ``look``, what to do."""
    doctor = commands.add_parser("doctor", help=_MEANING, description=f"{_MEANING}.", epilog=CODES)
    doctor.add_argument(
        "--metadb", metavar="URL", help="postgresql://..., or embedded:DIR/metadb (metadb.url)"
    )
    doctor.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(look=_doctor)


def _doctor(config: Config, given: argparse.Namespace) -> int:
    """Tell of everything that was looked at; -> the exit code."""
    found = look(config)
    wrong = [each for each in found if is_wrong(each)]
    if given.json:
        tell(json.dumps([asdict(each) for each in found], indent=2))
    else:
        for each in found:
            remedy = f"\n{'':15}-> {each.remedy}" if each.remedy else ""
            tell(f"{each.level:5} {each.about:8} {each.what}{remedy}")
        tell(f"\n{len(wrong)} of {len(found)} want something done" if wrong else "\nall is well")
    return FAILED if wrong else DONE


def look(config: Config) -> list[Finding]:
    """At everything, in order. Never raises what is wrong with the cluster."""
    setup_logging(replace(config.log, level="ERROR"))
    return in_order(_findings(config))


def _findings(config: Config) -> Iterator[Finding]:
    yield Finding(
        Level.OK,
        "versions",
        f"distfs {distfs.__version__}, Python {platform.python_version()}, {sys.platform}",
    )
    yield from _configured(config)
    yield from examine(config)
    yield from _certificates(config)
    yield from _cluster(config)
    yield _service(config)


def _configured(config: Config) -> Iterator[Finding]:
    try:
        check_reach(config)
    except ConfigError as e:
        what, _, remedy = str(e).partition(": ")
        yield Finding(Level.BAD, "config", what, remedy)
    for name, policy in config.storage.policies.items():
        try:
            code_for(policy)
        except ConfigError as e:
            what, _, remedy = str(e).partition(": ")
            yield Finding(Level.BAD, "config", f"storage.policies: {name}: {what}", remedy)
    ways = config.storage.compressions
    try:
        check_installed(ways)
        if any(how.mode == "auto" for how in ways) and library() is None:
            what = "storage.compression is auto, and nothing is compressed: there is no zstd here"
            yield Finding(Level.NOTE, "config", what, f"{REMEDY}, or storage.compression: off")
    except ConfigError as e:
        what, _, remedy = str(e).partition(": ")
        yield Finding(Level.BAD, "config", what, remedy)
    if config.auth.mode == "on" and config.audit.file == "auto" and not config.audit_file:
        what = "auth is on, and it is noted nowhere who changes what, since MetaDB is not in local.data"
        yield Finding(
            Level.WARN, "config", what, "name a file: audit.file: PATH, or `off` when that is meant"
        )


def _certificates(config: Config) -> Iterator[Finding]:
    for make in (contexts.https, contexts.peers):
        try:
            make(config.tls)
        except ConfigError as e:
            yield Finding(Level.BAD, "tls", str(e), "correct tls in config.yml, or have the file signed anew")
    pairs = config.tls.certificates
    files = [path for path in (*(pair.cert for pair in pairs), config.tls.ca, config.tls.cert) if path]
    ending = contexts.soon_over(files)
    for line in ending:
        what, _, remedy = line.rpartition(": ")
        yield Finding(Level.WARN, "tls", what, remedy)
    if files and not ending:
        yield Finding(Level.OK, "tls", f"no certificate ends within {contexts.SOON_DAYS} days")


# --- MetaDB and the nodes ---------------------------------------------------------------------------------


def _cluster(config: Config) -> Iterator[Finding]:
    try:
        meta = MetaDB(replace(config.metadb, patience=Seconds(PATIENCE_S)), config.node.down_after)
    except ConfigError as e:
        yield Finding(Level.BAD, "metadb", str(e), "correct metadb in config.yml, or DISTFS_METADB_URL")
        return
    with closing(meta):
        try:
            yield from _metadb(meta, config)
            yield from _agreed(meta, config)
            yield from _compressed(meta)
            yield from _rebuilt(meta)
            with closing(NodeDirectory(meta, config.peers, contexts.peers(config.tls))) as directory:
                yield from _nodes(meta, directory, config)
            yield from _upkeep(meta)
        except ConfigError as e:  # of certificates: it was told
            yield Finding(Level.BAD, "nodes", f"they are not asked: {e}", "mend what is told of tls first")
        except (DistfsError, Busy, OutcomeUnknown) as e:
            start = (
                "`distfs up` starts it"
                if embedded_postgres.is_embedded(config.metadb.url)
                else "start PostgreSQL"
            )
            yield Finding(Level.BAD, "metadb", str(e), f"{start}, or correct metadb.url")


def _metadb(meta: MetaDB, config: Config) -> Iterator[Finding]:
    began = time.time()
    [[version, connections, unsafe, now]] = meta.read("server_facts", Deadline(_LIMIT_S))
    ended = time.time()
    yield Finding(
        Level.OK,
        "metadb",
        f"PostgreSQL {version} at {meta.place} answered within {(ended - began) * 1000:.0f} ms",
    )
    for name in unsafe:
        yield Finding(
            Level.BAD,
            "metadb",
            f"PostgreSQL runs with {name} off: a crash may lose files that were acknowledged",
            f"ALTER SYSTEM SET {name} = on, and SELECT pg_reload_conf()",
        )
    wanted = config.metadb.pool_size + _OTHER_CONNECTIONS
    if connections < wanted:
        yield Finding(
            Level.WARN,
            "metadb",
            f"PostgreSQL takes {connections} connections, and a service with its upkeep and nodes may need {wanted}",
            f"have it take {wanted}, or more for more services (postgresql.conf), or lower metadb.pool_size",
        )
    yield from _clock("metadb", "MetaDB's machine", now - (began + ended) / 2, (ended - began) / 2)
    meta.ping(Deadline(_LIMIT_S))
    if not meta.all_know(latest(), Deadline(_LIMIT_S)):
        yield Finding(
            Level.NOTE,
            "metadb",
            "it was upgraded, and services of an older release may run: what these cannot read is not written yet",
            "`distfs migrate --finish`, when none runs any more",
        )


def _clock(about: str, whose: str, ahead: float, unsure: float) -> Iterator[Finding]:
    if abs(ahead) - unsure > _CLOCK_S:
        way = "ahead of" if ahead > 0 else "behind"
        yield Finding(
            Level.WARN,
            about,
            f"the clock of {whose} is {abs(ahead):.1f} s {way} this one's",
            _CLOCK_REMEDY,
        )


def _agreed(meta: MetaDB, config: Config) -> Iterator[Finding]:
    agreed = meta.settings(Deadline(_LIMIT_S))
    other = [key for key, seconds in times_of(config).items() if agreed.get(key, seconds) != seconds]
    if other:
        yield Finding(
            Level.BAD,
            "config",
            f"the cluster agreed on other times: {', '.join(other)}; a service with these does not start",
            "correct config.yml, or run `distfs settings --adopt`",
        )


def _compressed(meta: MetaDB) -> Iterator[Finding]:
    if library() is None and meta.read("has_compressed", Deadline(_LIMIT_S)) == [[True]]:
        what = "there is no zstd here, and files are compressed: a service here cannot read them (503)"
        yield Finding(Level.BAD, "config", what, REMEDY)


def _rebuilt(meta: MetaDB) -> Iterator[Finding]:
    if meta.is_rebuilding(Deadline(_LIMIT_S)):
        yield Finding(
            Level.WARN,
            "metadb",
            "it is being made anew from the nodes: until that ends nothing is taken for garbage, and no copy is kept",
            "`distfs metadb rebuild --from-nodes --finish`, when all nodes were read",
        )


def _nodes(meta: MetaDB, directory: NodeDirectory, config: Config) -> Iterator[Finding]:
    nodes = meta.nodes(Deadline(_LIMIT_S))
    found = [finding for node in nodes for finding in _node(node, directory)]
    yield from found
    writable = sum(node.writable for node in nodes)
    policy = config.storage.policy
    if writable < policy.width:
        yield Finding(
            Level.WARN if writable >= config.storage.fewest(policy) else Level.BAD,
            "nodes",
            f"{writable} nodes take fragments, and policy {policy} wants {policy.width}",
            "start nodes: python -m distfs.storage_server --init --port PORT --data DIR",
        )
    elif not found:
        yield Finding(Level.OK, "nodes", f"{len(nodes)} are up, and answer here")


def _node(node: Node, directory: NodeDirectory) -> Iterator[Finding]:
    if not node.alive:
        yield Finding(
            Level.BAD,
            "nodes",
            f"node {node.id} at {node.address} is down, and was heard of {node.heartbeat_age:.0f} s ago",
            f"start it again, or `distfs forget {node.id}` when it is gone for good",
        )
        return
    if node.state == "readonly":
        yield Finding(
            Level.BAD,
            "nodes",
            f"node {node.id} at {node.address} takes no fragments: its disk fails, or is slow or full",
            f"see its log, then `distfs drain {node.id}` and another disk",
        )
    began = time.time()
    try:
        told = directory.store(node.id, Deadline(_LIMIT_S)).info(Deadline(_LIMIT_S))
    except DistfsError as e:
        yield Finding(
            Level.BAD,
            "nodes",
            f"node {node.id} reports to MetaDB, and does not answer from here: {e}",
            _way_to(node, e.__cause__),
        )
        return
    ended = time.time()
    unsure = (ended - began) / 2
    yield from _clock("nodes", f"node {node.id}'s machine", told.clock - (began + unsure), unsure)


def _way_to(node: Node, why: BaseException | None) -> str:
    """What to do so that a node answers that cannot be talked to; ``why``: what the connection met."""
    if isinstance(why, ssl.SSLCertVerificationError):
        return f"have {node.uuid} signed another (`distfs tls node DIR`), or correct tls.ca"
    if isinstance(why, ssl.SSLError):
        return "see its log; set tls alike in all parts, or have this one's file made anew (`distfs tls service DIR`)"
    return f"see that {node.address} is its address (node.advertise) and no firewall is between"


def _upkeep(meta: MetaDB) -> Iterator[Finding]:
    if not any(map(is_running, UpkeepDB(meta).workers(Deadline(_LIMIT_S)))):
        yield Finding(
            Level.BAD,
            "upkeep",
            "no service does the upkeep: what is lost is not made anew",
            "run a service with upkeep.enabled: `distfs serve`, or `distfs up`",
        )


# --- the service ------------------------------------------------------------------------------------------


def _service(config: Config) -> Finding:
    url = configured_url(config)
    why = ask_service(url, config.tls.ca).get("error", "")
    if not why:
        return Finding(Level.OK, "service", f"{url} answers")
    if "administrators" in why:
        return Finding(Level.OK, "service", f"{url} answers; {why}, and `distfs status` tells how it does")
    if "no distfs service" in why:
        other = "stop it, or choose another port: http.port, --port"
        return Finding(Level.BAD, "service", f"another program listens at {url}: {why}", other)
    return Finding(Level.NOTE, "service", f"no service answers at {url}: {why}", "`distfs up` starts one")
