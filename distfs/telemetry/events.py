"""The fixed list of events: what a line of the log tells, under a name that stays when its sentence changes.

Who logs says a sentence, as ever; the list knows each by its pattern, and what the values in it are called. So an
event costs nothing where something is logged, only where a line is made. A test finds each call that logs, and
docs/events.md is this list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: What is said by a library, or by a pattern that is not in the list.
OTHER = "other"
#: What has no name among a pattern's values.
UNNAMED = "-"
_PLACES = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?[a-z]")


@dataclass(frozen=True, slots=True)
class Event:
    """``lines``: each pattern, ``|``, and a name for each value in it; ``-``: it is told in the sentence only. A
    pattern that several loggers have begins with ``logger>``."""

    name: str
    level: str
    meaning: str
    lines: tuple[str, ...]


def _event(name: str, level: str, meaning: str, *lines: str) -> Event:
    return Event(name, level, meaning, lines)


EVENTS: tuple[Event, ...] = (
    _event("request", "INFO", "A request was answered: its method, path, status, bytes and duration.", "request|"),
    _event("request.refused", "WARNING", "A request was refused before any of its body was read.", "refused|"),
    _event(
        "request.failed", "ERROR", "A request was answered with an error; the client saw the same request id.",
        "distfs.http>%s: %s|- error", "a request failed for no reason that should occur|", "the app failed|",
        "%s %s: %s|method path error",
    ),
    _event(
        "answer.cut", "ERROR", "An answer had begun and could not be ended: its connection was closed.",
        "the answer was cut short: %s|error", "the answer is longer than its Content-Length of %d: cut to it|bytes",
    ),
    _event(
        "tracing.lost", "WARNING", "The endpoint of traces takes no spans: they are dropped and counted.",
        "spans are lost: %s|error",
    ),
    _event("tracing.back", "INFO", "The endpoint of traces takes spans again.", "spans are sent again|"),
    _event(
        "history.failed", "ERROR", "A row of /status/history is missing.",
        "a row of the history is missing, by a bug|",
    ),
    _event(
        "log.missing", "WARNING", "Somebody asked for the log, and it could not all be had.",
        "what was asked for of the log is not all here: %s|error",
    ),
    _event("ready.not", "INFO", "The service was asked whether it is ready, and is not.", "not ready: %s|error"),
    _event(
        "client.connection", "ERROR", "A client's connection was not served, or was cut.",
        "a client at %s speaks %s on the port of HTTP: its connection is closed|address -",
        "a client at %s comes to no TLS connection: %s|address error", "a connection is cut, by a bug|",
        "a connection was turned away: %s|error", "a worker stumbled|",
        "new connections have to wait, open ones are served: %s|error",
    ),
    _event(
        "upload.waits", "INFO", "An upload waits for storage nodes or for MetaDB.",
        "an upload waits for storage nodes: %s|error",
        "an upload waits for storage nodes: %d of %d have slice %s|- - slice", "not committed yet: %s|error",
    ),
    _event(
        "upload.degraded", "WARNING", "A slice was stored with fewer fragments than its policy wants.",
        "slice %s has %d of %d fragments; repair adds the rest|slice - -",
    ),
    _event(
        "upload.fragment", "ERROR", "A fragment of an upload could not be sent to its node, or rebuilt on another.",
        "fragment %s.%d: node %d is gone since|slice index node",
        "fragment %s.%d on node %d: %s|slice index node error",
        "fragment %s.%d could not be rebuilt on node %d: %s|slice index node error",
        "fragment %s.%d is not sent on, by a bug|slice index", "a file is not hashed, by a bug|",
    ),
    _event(
        "fragment.left", "INFO", "A fragment that nobody needs could not be deleted; the orphan sweep does it later.",
        "fragment %s on node %d is left to the orphan sweep: %s|fragment node error",
    ),
    _event(
        "fragment.newer", "INFO", "A fragment was written by a newer distfs: nothing is done about it here.",
        "fragment %s on node %d is left as it is: %s|fragment node error",
    ),
    _event(
        "download.waits", "WARNING", "A download waits for storage nodes.",
        "file %s: a download waits for storage nodes: %s|file error",
    ),
    _event(
        "download.fragment", "WARNING", "A fragment was late, gone or bad while it was read; another was read.",
        "fragment %s.%d on node %d is late; another was read|slice index node",
        "fragment %s on node %d gives no block %d: %s|fragment node - error", "%s: %s; reading another|- error",
    ),
    _event(
        "download.search", "WARNING", "The fragments of a slice were looked for on all nodes.",
        "file %s: whether slice %s was moved cannot be told: %s|file slice error",
        "slice %s: %d fragments of it are left, wherever they are|slice -",
        "node %d does not say what it has of slice %s: %s|node slice error",
    ),
    _event(
        "node.started", "INFO", "A storage node serves, or was registered.",
        "node %s of cluster %s serves %s on %s|- - path address", "registered as node %d at %s|node address",
    ),
    _event(
        "node.heartbeat", "ERROR", "A storage node could not tell MetaDB that it is there.",
        "MetaDB was not told that this node stops, it will notice: %s|error",
        "waiting for MetaDB before %s: %s|- error", "no heartbeat: %s|error",
        "no heartbeat, by a bug; the next one tries again|",
    ),
    _event(
        "node.request", "WARNING", "A storage node could not do what a service asked of it.",
        "%s %s for request %s: %s|type fragment request_id error",
    ),
    _event(
        "node.connection", "ERROR", "A connection to a storage node ended, or was refused by it.",
        "%s: connection ended: %s|address error", "%s: connection ended by a bug|address",
        "distfs.node>%s: %s|address error", "service %s: the connection could not be served: %s|address error",
        "no connection is accepted any more|",
        "%s is not welcome: %s (%d more from there since the last such line, %d in all since the start)"
        "|address error - -",
    ),
    _event(
        "node.warning", "WARNING", "What a storage node's configuration is warned of.", "distfs.node>%s|error",
    ),
    _event(
        "node.joined", "INFO", "A storage node is there: new, or up again.",
        "node %d at %s has joined|node address", "node %d at %s is up again|node address",
    ),
    _event(
        "node.left", "WARNING", "A storage node is down, was stopped or forgotten.",
        "node %d is forgotten|node",
        "node %d at %s is down: it was heard of %.0f s ago|node address -",
    ),
    _event(
        "fragment.served", "DEBUG", "A storage node did what a service asked of it for a request, with its bytes and "
        "duration; with log.level DEBUG alone.",
        "served|",
    ),
    _event(
        "node.down", "WARNING", "A storage node does not answer, or its answer is not used.",
        "node %d heartbeats and does not answer: what it keeps counts as lost|node",
        "%d of %d nodes that heartbeat do not answer here: none is given up|- -",
        "a node that does badly is not asked how it is: %s|error",
    ),
    _event(
        "nodes.stale", "ERROR", "The list of storage nodes could not be read from MetaDB; the last one is used.",
        "the list of storage nodes is not read, by a bug|",
        "the list of storage nodes is that of %.1f s ago: %s|- error",
    ),
    _event(
        "disk.failing", "ERROR", "A storage node's disk fails, or is well again.",
        "distfs.disk>%s: %s|path error", "%s: the disk was not probed, by a bug|path",
    ),
    _event(
        "secret.open", "WARNING", "A file with a secret can be read by others, or cannot be used.",
        "%s was open to others, and is not any more: if somebody may have read it, `distfs cluster-key rotate`|path",
        "%s cannot be used: %s; MetaDB is asked for the cluster's keys|path error",
        "%s: everybody may read %s: chmod o-r %s|- path -", "%s: everybody may read %s: chmod 600 %s|- path -",
    ),
    _event(
        "tls.read", "ERROR", "Certificates were read anew, or could not be.",
        "%s: what was there goes on: %s|- error", "%s: read anew|-",
        "the certificates are not looked at now, but within seconds: %s|error",
    ),
    _event(
        "fragment.bad", "ERROR", "A fragment is damaged or gone, and is to be made anew.",
        "fragment %s on node %d: %s|fragment node error",
        "fragment %s on node %d is to be made anew: %s|fragment node error",
        "damage of fragment %s on node %d is not noted: %s|fragment node error",
        "damage of fragment %s on node %d is not noted, by a bug|fragment node",
        "fragment %s on node %d was in quarantine and is wanted|fragment node",
        "fragment %s on node %d stays where it is until it was replaced: %s|fragment node error",
        "fragment %s.%d on node %d is not proved good: %s|slice index node error",
    ),
    _event(
        "slice.repaired", "INFO", "A fragment was made anew on another node.",
        "fragment %s.%d made anew on node %d, was on node %d|slice index node was_on",
        "fragment %s.%d on node %d is not needed any more, or the node is being drained since|slice index node",
    ),
    _event(
        "slice.unrepaired", "WARNING", "A slice could not be repaired; the next round tries again.",
        "slice %s of file %s is not repaired: %s|slice file error",
        "fragment %s.%d: node %d cannot take it: %s|slice index node error",
    ),
    _event(
        "fragment.adopted", "WARNING", "A fragment was found on another node than MetaDB says.",
        "fragment %s is lost on node %d; node %d has it, too, and keeps it now|fragment was_on node",
        "stray fragment %s on node %d is not needed any more|fragment node",
        "stray fragment %s on node %d is not good: %s|fragment node error",
        "node %d does not say whether it keeps fragment %s: %s|node fragment error",
    ),
    _event(
        "orphans", "WARNING", "The sweep for fragments of no file: put aside, deleted, or ended early.",
        "orphan %s on node %d is put aside|fragment node", "orphan %s on node %d is deleted|fragment node",
        "the sweep of node %d ends here, nothing is concluded from it: %s|node error",
        "fragment %s on node %d is not put aside: it is gone, or was written since|fragment node",
    ),
    _event(
        "scrub", "WARNING", "The check of what a node keeps had to wait, or goes another way.",
        "the scrub of node %d pauses: %s|node error",
        "node %d cannot list what it keeps: %s; going by MetaDB's list|node error",
    ),
    _event(
        "rebalance", "WARNING", "Fragments are moved between nodes.",
        "node %d is draining: %d fragments are left|node -",
        "fragment %s was moved or deleted by somebody else, or its new node drains or keeps one of its slice"
        "|fragment",
        "node %d is left out of rebalancing: %s|node error", "fragment %s.%d is not moved: %s|slice index error",
        "%s; making it anew from the others|error",
    ),
    _event("trash", "INFO", "A deleted file's time in the trash is over.", "file %s is %s|file -"),
    _event(
        "metadb.copy", "INFO", "A copy of MetaDB is kept in the cluster.",
        "a copy of MetaDB is kept in the cluster, as file %s|file",
    ),
    _event(
        "upkeep", "ERROR", "Who leads the workers of upkeep, and what stopped one.",
        "upkeep %s: another service may lead now|worker", "upkeep %s: this service leads|worker",
        "upkeep %s: %s|worker error", "upkeep %s stumbled over a bug; it begins anew|worker",
    ),
    _event(
        "alert", "WARNING", "Something burns: what it is, and the command to run.",
        "alert %s: %s; run `%s`, see %s|alert - - -",
    ),
    _event("alert.over", "INFO", "It burns no more.", "alert %s is over|alert"),
    _event(
        "alert.untold", "WARNING", "The webhook or the mail server of alerting could not be told; it is tried again.",
        "alerts could not be told by %s: %s|- error",
    ),
    _event(
        "alert.failed", "ERROR", "A look for alerts of this service failed; the next comes.",
        "alerts of this service stumbled over a bug; they go on|",
    ),
    _event(
        "metadb", "ERROR", "What MetaDB's own process does: it died, was started, says something.",
        "PostgreSQL died; starting it again|", "%s; trying again in %g s|error -",
        "PostgreSQL's log is laid ahead: a full disk does not end it|",
        "PostgreSQL's log could not be laid ahead, the next start tries it again: %s|error", "MetaDB: %s|error",
    ),
    _event(
        "metadb.migrated", "INFO", "MetaDB's schema was changed.",
        "MetaDB: applied migration %04d %s|migration -",
        "MetaDB: migration %04d waits for every transaction that began before it, such as a backup (pg_stat_activity "
        "shows them); uploads go on meanwhile|migration",
    ),
    _event(
        "metadb.room", "ERROR", "MetaDB's disk has no room, or a ballast file keeps some.",
        "MetaDB IS ABOUT TO STOP FOR WANT OF ROOM: %s. %s of its ballast file were given up, so files can be "
        "deleted: delete some, run `distfs trash empty`, or free room outside of distfs; uploads wait for it|error -",
        "a ballast file of %s is kept in %s, to give up when the disk is full|- path",
        "the ballast of %s is left as it is: %s|path error",
    ),
    _event(
        "limits", "ERROR", "What was reserved for transfers, and the caps of tokens.",
        "not all caps of tokens are kept to: %s|error",
        "reservations could not be settled, they expire by themselves: %s|error",
        "reservations were not settled, by a bug; the next renewal tries again|",
        "reservations of a process that was killed were not given back, they expire: %s|error",
        "a reservation could not be given back, it expires by itself: %s|error",
    ),
    _event(
        "access", "WARNING", "A token or a link could not be judged or counted.",
        "a token cannot be judged: %s|error", "a use of link %s that came to nothing counts all the same: %s|- error",
    ),
    _event(
        "audit", "ERROR", "The audit log goes on in another file, or cannot be written.",
        "the audit log goes on in %s, at line %d, after %s|path - -",
        "the audit log %s cannot be written: %s; %d lines wait in memory: make room, or let distfs write there"
        "|path error -",
    ),
    _event(
        "config.read", "ERROR", "The configuration was read anew, or stays as it was.",
        "the configuration was read anew: %s|-", "a restart is needed for what else has changed: %s|-",
        "the configuration stays as it was: %s; send SIGHUP again|error",
        "the configuration stays as it was: %s|error",
        "not all of the configuration was applied: %s; then send SIGHUP again|error",
    ),
    _event(
        "coding.parity", "ERROR", "Two libraries make different parity for a policy.",
        "policy %s: ISA-L and liberasurecode make different parity: the latter is used|policy",
    ),
    _event(
        "process.ended", "ERROR", "A process of the service ended.",
        "%s %s; another is started in %g s|- error -", "%s process %d %s|- pid error",
        "%s process %d %s before it was ready|- pid error", "what this process holds cannot be told, by a bug|",
    ),
    _event(
        "metrics.untold", "WARNING", "Something cannot be told to who measures.",
        "no metrics: port %d cannot be listened on: %s|port error",
        "how the cluster is cannot be told to who measures it: %s|error",
    ),
    _event(
        "log.dropped", "WARNING", "Lines of the log were dropped: they could not be written, or not fast enough.",
        "%d lines of the log were dropped here: it is read too slowly|-",
        "%d lines of the log were dropped here: %s|- error",
    ),
    _event("up", "INFO", "What `distfs up` says: a part ended, is started again, or does not stop."),
    _event(OTHER, "ERROR", "What a library says."),
)  # fmt: skip


def _split(line: str) -> tuple[str, str, tuple[str, ...]]:
    """-> (its logger or nothing, its pattern, the names)."""
    pattern, names = line.rsplit("|", 1)
    logger, found, rest = pattern.partition(">")
    return (logger, rest, tuple(names.split())) if found else ("", pattern, tuple(names.split()))


_BY_PATTERN: Mapping[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    (logger, pattern): (event.name, names)
    for event in EVENTS
    for logger, pattern, names in map(_split, event.lines)
}
NAMES = frozenset(event.name for event in EVENTS)


def find(logger: str, pattern: object) -> tuple[str, tuple[str, ...]]:
    """-> (the event of what is logged with a pattern, what its values are called)."""
    key = str(pattern)
    return _BY_PATTERN.get(("", key)) or _BY_PATTERN.get((logger, key)) or (OTHER, ())


def places(pattern: str) -> int:
    """How many values a pattern takes."""
    return len(_PLACES.findall(pattern))


def patterns() -> Mapping[tuple[str, str], tuple[str, tuple[str, ...]]]:
    """All that are known: (logger or nothing, pattern) -> (event, names)."""
    return _BY_PATTERN


def page() -> str:
    """docs/events.md."""
    rows = [f"| `{e.name}` | {e.level} | {e.meaning} |" for e in EVENTS]
    head = (
        "# Events of the log",
        "",
        "Each line of the log is of an event from this list, by whose name `distfs logs` finds it.",
        "The level is the highest that a line of the event has. `make docs` writes this page.",
        "",
        "| event | level | what happened |",
        "|---|---|---|",
    )
    return "\n".join((*head, *rows)) + "\n"
