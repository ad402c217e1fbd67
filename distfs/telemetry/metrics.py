"""What is counted: each metric by name. How it is told to Prometheus is in ``metrics_told``.

A count is a cell in memory that all processes of a service share: each writes its own row, and a scrape adds them
up. So whichever process is asked tells of all, nothing is lost with one that is killed, since its successor goes on
with its row, and no file is left over. Label values are fixed here: no request makes a new cell.
"""

from __future__ import annotations

import mmap
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from distfs import errors

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
SERVICE, NODE, BOTH = "service", "node", "both"  # who tells of it
_CELL = 8
OTHER = "other"
ROUTES = (
    *("/upload", "/upload/<name>", "/download/<uuid>", "/files", "/files/<uuid>", "/files/<uuid>/links"),
    *("/links", "/links/revoke", "/tokens", "/tokens/<uuid>", "/tokens/<uuid>/rotate", "/", "/healthz"),
    *("/readyz", "/status", "/status/history", "/metrics", "/logs", "/debug/stacks", "/debug/profile", OTHER),
)
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", OTHER)
TYPES = (
    *("PUT", "WHOLE", "GET", "STAT", "DELETE", "LIST", "VERIFY", "INFO"),
    *("QUARANTINE", "RELEASE", "DISCARD", "METRICS", "LOGS", "HEADS", "TRACES", OTHER),
)
#: Nodes by their ids, which are given one after the other; those above are counted together.
NODES = (*map(str, range(1, 1024)), OTHER)
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
WIDTH = len(BUCKETS) + 2  # one for what takes longer, and the sum


def _kinds() -> tuple[str, ...]:
    found, todo = {errors.DistfsError.kind}, [errors.DistfsError]
    while todo:
        todo += (below := todo.pop().__subclasses__())
        found |= {each.kind for each in below}
    return tuple(sorted(found))


class Metric:
    """One of them. ``labels``: each with the values it may have; None: what a scrape finds, such as node ids."""

    def __init__(
        self,
        name: str,
        kind: str,
        meaning: str,
        labels: Mapping[str, Sequence[str] | None] | None = None,
        part: str = SERVICE,
    ) -> None:
        self.part = part
        self.name, self.kind, self.meaning = f"distfs_{name}", kind, meaning
        self.labels = dict(labels or {})
        self.first = -1  # its first cell; less than 0: it has none, and is looked at at a scrape
        METRICS.append(self)

    @property
    def series(self) -> list[tuple[str, ...]]:
        return list(product(*(values or () for values in self.labels.values())))

    def add(self, amount: float = 1, at: int = 0) -> None:
        """``at``: the number of the series."""
        with _lock:
            _cells[self.first + at] += amount

    def set(self, value: float, at: int = 0) -> None:
        """Of a gauge: this process's part of it."""
        with _lock:
            _cells[self.first + at] = value

    def observe(self, seconds: float, at: int = 0) -> None:
        """Of a histogram."""
        first = self.first + at * WIDTH
        with _lock:
            _cells[first + bisect_left(BUCKETS, seconds)] += 1
            _cells[first + WIDTH - 1] += seconds

    def index(self, *values: str) -> int:
        return self.series.index(values)

    def value(self, *values: str) -> float:
        """Of all processes, as it is now."""
        at = self.first + self.index(*values)
        return sum(row[at] for row in _rows)


class Sample(NamedTuple):
    """What a scrape has looked at."""

    metric: Metric
    value: float
    labels: tuple[str, ...] = ()


METRICS: list[Metric] = []


def _counted(
    name: str, kind: str, meaning: str, labels: Mapping[str, Sequence[str]] | None = None, part: str = SERVICE
) -> Metric:
    """One that has cells."""
    global _count  # noqa: PLW0603 - while this module is read, and never again
    metric = Metric(name, kind, meaning, labels, part)
    metric.first = _count
    _count += len(metric.series) * (WIDTH if kind == HISTOGRAM else 1)
    return metric


_count = 0
_BY = {"route": ROUTES, "method": METHODS, "code": CLASSES}
REQUESTS = _counted("http_requests_total", COUNTER, "Requests that were answered.", _BY)
RECEIVED = _counted("http_received_bytes_total", COUNTER, "Bytes of request bodies that were read.", _BY)
SENT = _counted("http_sent_bytes_total", COUNTER, "Bytes of answers' bodies that were sent.", _BY)
SECONDS = _counted(
    "http_request_seconds",
    HISTOGRAM,
    "From a request's head to the end of its answer, however slow the client.",
    {"route": ROUTES},
)
QUEUE_SECONDS = _counted(
    "http_queue_seconds",
    HISTOGRAM,
    "How long a request waited for its turn or a thread, of those that had to.",
)
CONNECTIONS = _counted("http_connections", GAUGE, "Connections of clients that are open.")
CONNECTION_STATES = ("idle", "handshake", "receiving", "served", "sending")
CONNECTIONS_BY_STATE = _counted(
    "http_connections_state",
    GAUGE,
    "Those connections by what they do, as it was within the last seconds: nothing; a handshake of TLS; a request "
    "comes, and nobody works for it yet; it is served; the rest of a small answer goes out.",
    {"state": CONNECTION_STATES},
)
IN_FLIGHT = _counted("http_requests_in_flight", GAUGE, "Requests that are being answered.")
HTTP_THREADS = _counted(
    "http_threads", GAUGE, "Threads that serve a request, or have none to serve.", {"state": ("busy", "idle")}
)
HTTP_WAITING = _counted("http_connections_waiting", GAUGE, "Connections whose request waits for its turn.")
KINDS = _kinds()
ERRORS = _counted(
    "http_errors_total",
    COUNTER,
    "Requests that came to an error, by its kind: too_many, full, busy and the like are refusals by a limit.",
    {"kind": KINDS},
)
BAD_LOGINS = _counted(
    "auth_failures_total", COUNTER, "Times that what was shown as a token or a link was none."
)
HEDGES = _counted(
    "hedged_reads_total",
    COUNTER,
    "Late reads: asked of another node, too; answered by it first; not asked again, for the budget was spent.",
    {"what": ("asked", "won", "refused")},
)
OPENINGS = _counted(
    "node_breaker_openings_total", COUNTER, "Times that a node was left alone after failures."
)

NODE_FAILURES = _counted(
    "node_failures_total",
    COUNTER,
    "Times that a node could not be reached, was too slow, or made no sense.",
    {"node": NODES},
)
NODE_SECONDS = _counted(
    "node_read_seconds", HISTOGRAM, "From a read's request to the beginning of the node's answer."
)
NODE_RECEIVED = _counted(
    "node_received_bytes_total", COUNTER, "Bytes of fragments that nodes began to send us.", {"node": NODES}
)
NODE_SENT = _counted(
    "node_sent_bytes_total",
    COUNTER,
    "Bytes that were sent to nodes, of requests that were answered.",
    {"node": NODES},
)
RETRIES = _counted(
    "retries_total",
    COUNTER,
    "What was done once more: a statement of MetaDB; a request to a node whose connection was stale; a read, of "
    "another fragment; a write of a fragment, to another node.",
    {"what": ("statement", "request", "read", "write")},
)
CHECKSUMS = _counted(
    "checksum_failures_total",
    COUNTER,
    "What failed its check: on its way to a node; when it was read for somebody, on the node's disk or on its way "
    "here; when scrub looked, or repair.",
    {"where": ("sent", "read", "scrub", "repair")},
)
DAMAGE = _counted(
    "damaged_fragments_total", COUNTER, "Fragments that a reader, scrub or repair found corrupt or missing."
)
METADB_SECONDS = _counted(
    "metadb_statement_seconds", HISTOGRAM, "What a statement of MetaDB took that succeeded."
)
METADB_FAILURES = _counted(
    "metadb_connect_failures_total",
    COUNTER,
    "Times that no server of MetaDB could be connected to that takes writes.",
)

BUILD = Metric("build_info", GAUGE, "1, with the version that runs.", {"version": None}, BOTH)
LOG_DROPPED = _counted(
    "log_dropped_lines_total",
    COUNTER,
    "Lines of the log that could not be written, or not fast enough.",
    part=BOTH,
)
THREADS = Metric("threads", GAUGE, "Threads, whatever they do.", part=BOTH)
SPANS_DROPPED = _counted(
    "trace_spans_dropped_total",
    COUNTER,
    "Spans of traces that were too many, or that tracing.endpoint did not take.",
    part=BOTH,
)
PROCESSES = Metric("processes", GAUGE, "Processes of this service that serve.")
MEMORY_LIMIT = Metric("memory_limit_bytes", GAUGE, "storage.memory_budget, of all processes.")
MEMORY_USED = Metric("memory_used_bytes", GAUGE, "Memory of blocks in flight and small bodies.")
MEMORY_WAITING = Metric("memory_waiting", GAUGE, "Transfers that wait for memory.")
UPLOADS = Metric("uploads_large", GAUGE, "Uploads larger than http.stream_threshold that run.")
DECLARED = Metric("uploads_declared_bytes", GAUGE, "Bytes that those have said they will send.")
PROMISES = Metric("uploads_promises", GAUGE, "Promises of room in the cluster that this service holds.")
WAITING = Metric("bandwidth_waiting", GAUGE, "Transfers that wait for bandwidth.", {"direction": None})
LIST_AGE = Metric("node_list_age_seconds", GAUGE, "Age of the list of nodes that this service goes by.")
NODE_UP = Metric("node_up", GAUGE, "1 while MetaDB hears of the node, else 0.", {"node": None})
NODE_CAPACITY = Metric("node_capacity_bytes", GAUGE, "Size of the node's disk.", {"node": None})
NODE_FREE = Metric(
    "node_free_bytes", GAUGE, "What the node may still take; its reserve is subtracted.", {"node": None}
)
NODE_AGE = Metric("node_heartbeat_age_seconds", GAUGE, "Since the node's last heartbeat.", {"node": None})
NODE_STRANGERS = Metric("node_strangers", GAUGE, "Whom the node refused in an hour.", {"node": None})
NODE_BREAKER = Metric(
    "node_breaker_open", GAUGE, "1 while this service leaves the node alone.", {"node": None}
)
NODE_LATENCY = Metric(
    "node_latency_seconds",
    GAUGE,
    "How soon the node answered lately: half of the reads sooner.",
    {"node": None},
)
NODE_CONNECTIONS = Metric(
    "node_connections",
    GAUGE,
    "Connections of this service to the node that are lent or idle; and who waits for one.",
    {"node": None, "state": None},
)
NODE_MOST = Metric(
    "node_connections_limit", GAUGE, "peers.max_connections: so many to each node, of all processes."
)
METADB_CONNECTIONS = Metric(
    "metadb_connections",
    GAUGE,
    "Connections of this service to MetaDB that are lent or idle; and who waits for one.",
    {"state": None},
)
METADB_MOST = Metric("metadb_connections_limit", GAUGE, "metadb.pool_size, of all processes.")
METADB_UP = Metric("metadb_up", GAUGE, "1 unless the last connect of the asked process to MetaDB failed.")
CLOCK_OFFSET = Metric("metadb_clock_offset_seconds", GAUGE, "How far our clock is ahead of MetaDB's.")
CERTIFICATE = Metric(
    "certificate_end_timestamp_seconds", GAUGE, "When the first of this service's certificates ends."
)
FACTS_AGE = Metric(
    "cluster_facts_age_seconds",
    GAUGE,
    "Age of what follows of the cluster: looked at every 15 s, while asked for.",
)
HURT = Metric(
    "slices_lacking",
    GAUGE,
    "Slices that lack a fragment, by how many more losses they survive; -1: they cannot be read.",
    {"redundancy_left": None},
)
TO_REPAIR = Metric("fragments_lacking", GAUGE, "Fragments that are to be made anew.")
TO_REPAIR_BYTES = Metric("fragments_lacking_bytes", GAUGE, "Their bytes.")
DAMAGED = Metric("fragments_damaged", GAUGE, "Fragments known to be corrupt or missing.")
OLDEST = Metric(
    "oldest_loss_age_seconds",
    GAUGE,
    "Since the first loss that is not repaired yet: a note of damage, or the last that was heard of a node that is "
    "down and keeps something; 0: there is none.",
)
TO_ERASE = Metric("trash_to_erase_files", GAUGE, "Files out of the trash whose fragments are still to go.")
BACKUP_AGE = Metric(
    "metadb_backup_age_seconds",
    GAUGE,
    "Since `distfs backup` last wrote MetaDB to a file; +Inf: it never did.",
)
WORKER_AGE = Metric(
    "upkeep_age_seconds",
    GAUGE,
    "Since the worker was last heard of; above 100 it does not run.",
    {"worker": None},
)
WORKER_STUCK = Metric("upkeep_stuck", GAUGE, "1 while the worker says why it cannot go on.", {"worker": None})
WORKER_FIGURES = Metric(
    "upkeep_figure",
    GAUGE,
    "What the worker says of itself, as `distfs status` shows it.",
    {"worker": None, "figure": None},
)
INVENTORY_AGE = Metric(
    "cluster_inventory_age_seconds",
    GAUGE,
    "Age of the counts that follow: counted every minute at most, and a fiftieth of the time, while asked for.",
)
FILES = Metric("files", GAUGE, "Files that can be downloaded.")
FILE_BYTES = Metric("files_bytes", GAUGE, "Their bytes, each once.")
SLICES = Metric(
    "slices",
    GAUGE,
    "All slices, by how many losses they survive as it is now; -1: they cannot be read.",
    {"redundancy_left": None},
)
TRASH_FILES = Metric("trash_files", GAUGE, "Files in the trash.")
TRASH_BYTES = Metric("trash_bytes", GAUGE, "Their bytes, each once.")
NODE_FRAGMENTS = Metric(
    "node_fragments",
    GAUGE,
    "Fragments that MetaDB says the node keeps, trash included; of many an estimate.",
    {"node": None},
)
AUDIT_WAITING = Metric("audit_waiting_lines", GAUGE, "Lines of the audit log that could not be written yet.")

SERVED = _counted(
    "storage_request_seconds",
    HISTOGRAM,
    "Requests that the node served, by what was asked.",
    {"type": TYPES},
    NODE,
)
SERVED_ERRORS = _counted(
    "storage_errors_total", COUNTER, "Requests that the node refused or gave up.", {"kind": KINDS}, NODE
)
STORE_RECEIVED = _counted("storage_received_bytes_total", COUNTER, "Bytes of cells that came.", part=NODE)
STORE_SENT = _counted("storage_sent_bytes_total", COUNTER, "Bytes of cells that were asked for.", part=NODE)
STORE_CHECKSUMS = _counted(
    "storage_checksum_failures_total",
    COUNTER,
    "What failed its check on the node: as it came, or when it was read from the disk.",
    {"where": ("received", "disk")},
    NODE,
)
STRANGERS = Metric(
    "storage_strangers_total", COUNTER, "Connections that were refused, by why.", {"reason": None}, NODE
)
DISK_TROUBLE = Metric("disk_trouble", GAUGE, "1 while the disk takes nothing, but for a full one.", part=NODE)
DISK_SIZE = Metric("disk_capacity_bytes", GAUGE, "Size of the disk.", part=NODE)
DISK_USED = Metric("disk_used_bytes", GAUGE, "Used of it, by whatever.", part=NODE)
DISK_FREE = Metric("disk_free_bytes", GAUGE, "What fragments may still take.", part=NODE)
NODE_CERTIFICATE = Metric(
    "storage_certificate_end_timestamp_seconds", GAUGE, "When the node's own certificate ends.", part=NODE
)

_ROUTE = {name: at for at, name in enumerate(ROUTES)}
_METHOD = {name: at for at, name in enumerate(METHODS)}
_TYPE = {name: at for at, name in enumerate(TYPES)}
_KIND = {name: at for at, name in enumerate(KINDS)}

_lock = threading.RLock()  # of this process alone, and held for a microsecond; a signal's handler may log
_rows: list[memoryview[float]] = []
_cells: memoryview[float]
#: By cell of a bucket: a trace's id, the seconds it took, and when that was.
exemplars: dict[int, tuple[str, float, float]] = {}


def share(rows: int = 1) -> None:
    """Begin anew, for so many processes; before they are forked."""
    memory = memoryview(mmap.mmap(-1, max(1, _count) * _CELL * rows)).cast("d")
    exemplars.clear()
    _rows[:] = [memory[_count * row : _count * (row + 1)] for row in range(rows)]
    mine(0)


def mine(row: int) -> None:
    """From now on this process is number ``row``."""
    global _cells  # noqa: PLW0603 - a process has one row
    _cells = _rows[row]


def forget(row: int) -> None:
    """That process has ended: what it had in hand it has no more. What it counted stays."""
    for metric in METRICS:
        if metric.first >= 0 and metric.kind == GAUGE:
            for at in range(len(metric.series)):
                _rows[row][metric.first + at] = 0.0


share()


def sums() -> list[float]:
    """All cells, of all processes."""
    return [sum(column) for column in zip(*_rows, strict=True)]


def answered(route: str, method: str, status: int, received: int, sent: int, seconds: float) -> None:
    """A request is over."""
    at, first = _answers_at(route, method, status)
    with _lock:
        cells = _cells
        cells[REQUESTS.first + at] += 1
        cells[RECEIVED.first + at] += received
        cells[SENT.first + at] += sent
        cells[first + bisect_left(BUCKETS, seconds)] += 1
        cells[first + WIDTH - 1] += seconds
        cells[IN_FLIGHT.first] -= 1


@lru_cache(maxsize=1024)
def _answers_at(route: str, method: str, status: int) -> tuple[int, int]:
    """The number of their series, and the first cell of how long they take."""
    place = _ROUTE[route]
    at = (place * len(METHODS) + _METHOD.get(method, len(METHODS) - 1)) * len(CLASSES)
    return at + min(max(status // 100, 1), len(CLASSES)) - 1, SECONDS.first + place * WIDTH


def node_read(series: int, seconds: float, sent: int, received: int) -> None:
    """A small read was answered by a node, of the ``series`` of that."""
    with _lock:
        cells = _cells
        cells[NODE_SECONDS.first + bisect_left(BUCKETS, seconds)] += 1
        cells[NODE_SECONDS.first + WIDTH - 1] += seconds
        cells[NODE_SENT.first + series] += sent
        cells[NODE_RECEIVED.first + series] += received


def exemplify(route: str, seconds: float, trace: str) -> None:
    """Such a request's trace is sent: who asks for OpenMetrics is shown the last one of each bucket, of the process
    that is asked."""
    cell = SECONDS.first + _ROUTE[route] * WIDTH + bisect_left(BUCKETS, seconds)
    exemplars[cell] = trace, seconds, time.time()


def served(type_: str, seconds: float) -> None:
    """A node's request is over."""
    SERVED.observe(seconds, _TYPE.get(type_, len(TYPES) - 1))


def node_at(number: int) -> int:
    """The number of a node's series, of all by node."""
    return number - 1 if 0 < number < len(NODES) else len(NODES) - 1


def failed(error: Exception, metric: Metric = ERRORS) -> None:
    """A request came to an error."""
    kind = error.kind if isinstance(error, errors.DistfsError) else errors.DistfsError.kind
    metric.add(at=_KIND.get(kind, _KIND[errors.DistfsError.kind]))
