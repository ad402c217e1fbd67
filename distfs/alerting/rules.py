"""The table of alerts: when each burns, what it says, the command to run. monitoring/alerts.yml is made from it.

What tells how often a thing went wrong is told over two windows (Google's Site Reliability Workbook, "Alerting on
SLOs"): the long one says that it matters, the short one that it goes on.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distfs.alerting.expression import Both, Expression, Is, Less, Of, Over, Rest, Said, Share, Until, in_time
from distfs.errors import ConfigError
from distfs.telemetry import metrics as m

CRITICAL, WARNING = "critical", "warning"
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
RUNBOOK = "docs/runbook.md"

#: Of all requests so many may fail, and so many reads of nodes be late, for as long as there is a month for it.
ERRORS_ALLOWED, LATE_ALLOWED = 0.001, 0.01
#: Of fewer in the time that is looked at no share is taken.
MANY = 100
_LATE_S, _SLOW_S = 0.5, 0.25  # bounds of buckets


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert. In ``summary`` and ``command``, one of distfs, ``{label}`` is that of what burns."""

    name: str
    severity: str
    condition: Expression
    holds: float  # seconds that it is so before somebody is told
    summary: str
    command: str
    own: bool = False  # it is about one service, which judges it of itself; else about all

    @property
    def section(self) -> str:
        """Of the runbook: DistfsNodeDown -> node-down."""
        return re.sub(
            r"(?<=[a-z])(?=[A-Z])", "-", self.name.removeprefix("Distfs").replace("DB", "db")
        ).lower()

    @property
    def runbook(self) -> str:
        return f"{RUNBOOK}#{self.section}"


def filled(words: str, labels: Mapping[str, str]) -> str:
    """``words`` with the labels of what burns."""
    return re.sub(r"\{(\w+)\}", lambda found: labels.get(found[1], "?"), words)


def _requests(window: float, code: str = "") -> Over:
    where = {"route": "!/healthz|/readyz|/metrics", **({"code": code} if code else {})}
    return Over("rate", Of(m.REQUESTS, "sum", where=where), window)


def _errors(window: float, times: float) -> Is:
    return Is(Share(_requests(window, "5xx"), _requests(window)), ">", times * ERRORS_ALLOWED)


def _within(metric: m.Metric, bound: float, window: float, where: Mapping[str, str]) -> Over:
    return Over("rate", Of(metric, "sum", where={**where, "le": f"{bound}"}, suffix="_bucket"), window)


def _times(metric: m.Metric, window: float, where: Mapping[str, str], function: str = "rate") -> Over:
    return Over(function, Of(metric, "sum", where=where, suffix="_count"), window)


def _slower(metric: m.Metric, bound: float, window: float, where: Mapping[str, str]) -> Rest:
    return Rest(Share(_within(metric, bound, window, where), _times(metric, window, where)))


def _late(
    window: float, times: float, metric: m.Metric = m.NODE_SECONDS, where: Mapping[str, str] | None = None
) -> Is:
    return Is(_slower(metric, _LATE_S, window, where or {}), ">", times * LATE_ALLOWED)


def _waited(window: float) -> Share:
    """For its turn, of all requests."""
    soon = _within(m.QUEUE_SECONDS, _LATE_S, window, {})
    return Share(Less(_times(m.QUEUE_SECONDS, window, {}), soon), _requests(window))


def _many(metric: m.Metric, window: float, where: Mapping[str, str] | None = None) -> Is:
    """Where there are few, one that is late is no trend."""
    return Is(_times(metric, window, where or {}, "increase"), ">", MANY)


def _grew(
    metric: m.Metric, by: str, window: float, limit: float = 0, where: Mapping[str, str] | None = None
) -> Is:
    return Is(Over("increase", Of(metric, "sum", (by,) if by else (), where or {}), window), ">", limit)


def _lacking(left: str) -> Is:
    return Is(Of(m.HURT, where={"redundancy_left": left}), ">", 0)


_LACKING = Is(Of(m.TO_REPAIR_BYTES), ">", 0)
#: Where there are few requests, one that fails is no trend.
_OFTEN = Is(Over("increase", _requests(HOUR, "5xx").of, HOUR), ">", 10)
_REFUSALS = "too_many|too_much|busy|full|over_quota"

#: Of requests whose answer is small and comes from MetaDB, however slow the client.
_SMALL = {"route": "/files.*|/links.*|/tokens.*"}
#: The one that whoever leads cannot judge, since it leads by MetaDB.
AWAY = "DistfsMetaDBAway"

RULES = (
    Rule(
        "DistfsServiceDown", CRITICAL, Said('up{job="distfs"} == 0'), 2 * MINUTE,
        "the service at {instance} does not answer Prometheus", "status --service {instance}",
    ),
    Rule(
        "DistfsNodeDown", WARNING, Is(Of(m.NODE_UP, "min", ("node",)), "==", 0), MINUTE,
        "storage node {node} is down", "nodes",
    ),
    Rule(
        "DistfsNothingToSpare", CRITICAL, _lacking("0"), 5 * MINUTE,
        "slices cannot be read any more if one more fragment is lost", "repair --now",
    ),
    Rule(
        "DistfsUnreadable", CRITICAL, _lacking("-1"), 2 * MINUTE,
        "slices have too few fragments where they belong, and cannot be read", "fsck --deep",
    ),
    Rule(
        "DistfsRepairStuck", CRITICAL, Is(Of(m.WORKER_STUCK, where={"worker": "repair"}), "==", 1), 15 * MINUTE,
        "repair cannot go on", "status",
    ),
    Rule(
        "DistfsRepairTooSlow", WARNING,
        Both((Is(Over("deriv", Of(m.TO_REPAIR_BYTES), 30 * MINUTE), ">", 0), _LACKING)), 30 * MINUTE,
        "fragments are lost sooner than repair makes them anew", "status",
    ),
    Rule(
        "DistfsDiskFilling", WARNING,
        Is(Over("predict_linear", Of(m.NODE_FREE, "min", ("node",)), 6 * HOUR, 3 * DAY), "<", 0), HOUR,
        "storage node {node} is full within three days", "nodes",
    ),
    Rule(
        "DistfsDiskFull", CRITICAL, Is(Of(m.NODE_FREE, "min", ("node",)), "<=", 0), 5 * MINUTE,
        "storage node {node} has no room left", "trash list",
    ),
    Rule(
        "DistfsDiskTrouble", CRITICAL, Is(Of(m.DISK_TROUBLE, "max", ("instance",)), "==", 1), 5 * MINUTE,
        "the disk of the node at {instance} takes no fragments", "doctor",
    ),
    Rule(
        "DistfsChecksumFailures", WARNING, _grew(m.CHECKSUMS, "where", HOUR), 0,
        "bytes failed their check: {where}", "fsck --deep", own=True,
    ),
    Rule(
        "DistfsNodeChecksumFailures", WARNING, _grew(m.STORE_CHECKSUMS, "instance", HOUR), 0,
        "bytes failed their check on the node at {instance}", "fsck --deep",
    ),
    Rule(
        "DistfsErrorsFast", CRITICAL, Both((_errors(HOUR, 14.4), _errors(5 * MINUTE, 14.4), _OFTEN)), 2 * MINUTE,
        "so many requests fail that a month's allowance is gone within two days",
        "logs --level ERROR --since 1h", own=True,
    ),
    Rule(
        "DistfsErrorsSlow", WARNING, Both((_errors(6 * HOUR, 6), _errors(30 * MINUTE, 6), _OFTEN)), 15 * MINUTE,
        "so many requests fail that a month's allowance is gone within five days",
        "logs --level ERROR --since 6h", own=True,
    ),
    Rule(
        "DistfsLatencyFast", CRITICAL,
        Both((_late(HOUR, 14.4), _late(5 * MINUTE, 14.4), _many(m.NODE_SECONDS, HOUR))), 2 * MINUTE,
        "one of seven reads begins later than half a second", "status", own=True,
    ),
    Rule(
        "DistfsLatencySlow", WARNING,
        Both((_late(6 * HOUR, 6), _late(30 * MINUTE, 6), _many(m.NODE_SECONDS, 6 * HOUR))), 15 * MINUTE,
        "one of sixteen reads begins later than half a second", "status", own=True,
    ),
    Rule(
        "DistfsAnswersLate", WARNING,
        Both((
            _late(HOUR, 6, m.SECONDS, _SMALL), _late(5 * MINUTE, 6, m.SECONDS, _SMALL),
            _many(m.SECONDS, HOUR, _SMALL),
        )), 5 * MINUTE,
        "one of sixteen answers that move no file takes longer than half a second", "status", own=True,
    ),
    Rule(
        "DistfsRequestsWait", WARNING,
        Both((
            Is(_waited(10 * MINUTE), ">", 0.05),
            Is(Over("increase", _requests(10 * MINUTE).of, 10 * MINUTE), ">", MANY),
        )), 10 * MINUTE,
        "one of twenty requests waits longer than half a second for its turn", "status", own=True,
    ),
    Rule(
        AWAY, CRITICAL, Is(Of(m.METADB_UP, "min"), "==", 0), MINUTE,
        "a service cannot connect to MetaDB", "doctor", own=True,
    ),
    Rule(
        "DistfsMetaDBSlow", WARNING,
        Both((
            Is(_slower(m.METADB_SECONDS, _SLOW_S, 10 * MINUTE, {}), ">", 0.05),
            _many(m.METADB_SECONDS, 10 * MINUTE),
        )), 10 * MINUTE,
        "one of twenty statements of MetaDB takes longer than a quarter of a second", "doctor", own=True,
    ),
    Rule(
        "DistfsClusterUnseen", WARNING, Is(Of(m.FACTS_AGE, "min"), ">", 5 * MINUTE), 5 * MINUTE,
        "how the cluster is cannot be found out, so other alerts may be missing",
        "status", own=True,
    ),
    Rule(
        "DistfsBackupOld", WARNING, Is(Of(m.BACKUP_AGE, "min"), ">", 2 * DAY), HOUR,
        "there is no backup of MetaDB from the last two days", "backup FILE",
    ),
    Rule(
        "DistfsCertificateEnds", WARNING, Is(Until(Of(m.CERTIFICATE, "min")), "<", 14 * DAY), HOUR,
        "a certificate of the service ends within two weeks", "tls show DIR", own=True,
    ),
    Rule(
        "DistfsNodeCertificateEnds", WARNING,
        Is(Until(Of(m.NODE_CERTIFICATE, "min", ("instance",))), "<", 14 * DAY), HOUR,
        "the certificate of the node at {instance} ends within two weeks", "tls show DIR",
    ),
    Rule(
        "DistfsClockSkew", WARNING, Is(Of(m.CLOCK_OFFSET, absolute=True), ">", 1), 5 * MINUTE,
        "the clock of a service and that of MetaDB differ by more than a second", "doctor", own=True,
    ),
    Rule(
        "DistfsUpkeepAway", CRITICAL, Is(Of(m.WORKER_AGE, "min", ("worker",)), ">", 100), 5 * MINUTE,
        "no service does {worker}, a part of the upkeep", "status",
    ),
    Rule(
        "DistfsUpkeepStuck", WARNING,
        Is(Of(m.WORKER_STUCK, "max", ("worker",), {"worker": "!repair"}), "==", 1), 30 * MINUTE,
        "the upkeep's {worker} cannot go on", "status",
    ),
    Rule(
        "DistfsLogDrops", WARNING, _grew(m.LOG_DROPPED, "", 15 * MINUTE), 0,
        "lines of the log were dropped", "doctor", own=True,
    ),
    Rule(
        "DistfsStrangers", WARNING, Is(Of(m.NODE_STRANGERS, "max", ("node",)), ">", 20), 0,
        "strangers come to the port of storage node {node} again and again", "nodes",
    ),
    Rule(
        "DistfsRefusals", WARNING, _grew(m.ERRORS, "kind", 15 * MINUTE, 100, {"kind": _REFUSALS}), 5 * MINUTE,
        "a limit refuses many requests: {kind}", "status", own=True,
    ),
)  # fmt: skip


def check_names(ignored: Iterable[str]) -> None:
    """Raises ConfigError for one that is no alert: who meant another would not be told of it, or would be."""
    known = {rule.name for rule in RULES}
    for name in ignored:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(
                f"config: alerting.ignore: there is no alert {name}{meant}; known: {', '.join(sorted(known))}"
            )


def page() -> str:
    """monitoring/alerts.yml."""
    return _HEAD + "".join(map(_entry, RULES))


_HEAD = """\
# Alerts for Prometheus. `make docs` writes this file from distfs/alerting/rules.py.
# The scrape jobs are called as in docs/metrics.md.
groups:
- name: distfs
  rules:
"""


def _entry(rule: Rule) -> str:
    words = {
        "summary": _templated(rule.summary),
        "command": f"distfs {_templated(rule.command)}",
        "runbook_url": rule.runbook,
    }
    lines = [f"  - alert: {rule.name}", f"    expr: {json.dumps(rule.condition.promql)}"]
    lines += [f"    for: {in_time(rule.holds)}"] if rule.holds else []
    lines += ["    labels:", f"      severity: {rule.severity}", "    annotations:"]
    lines += [f"      {key}: {json.dumps(value)}" for key, value in words.items()]
    return "\n".join(lines) + "\n"


def _templated(words: str) -> str:
    return re.sub(r"\{(\w+)\}", r"{{ $labels.\1 }}", words)
