"""The worker that tells people what burns: in the log, to a webhook, by mail. For those who run no Prometheus.

It is a worker as those of upkeep are: one service of all leads it, in a thread of its own, so whoever is slow to be
told holds up nothing else. What was told stays in its row of MetaDB, by which a successor goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

from distfs.alerting.burning import Alert, Burning
from distfs.alerting.rules import RULES
from distfs.alerting.tell import Told, ways
from distfs.config.settings import AlertingConfig
from distfs.deadline import Deadline
from distfs.telemetry.metrics import Sample
from distfs.telemetry.metrics_seen import seen
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.step import Pace, Step

log = logging.getLogger("distfs.alerts")

EVERY_S = 15.0
#: Somebody who could not be told is tried again after so long.
RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """One of three seams of tests."""

    forwards: Callable[[], float] = time.monotonic
    of_day: Callable[[], float] = time.time


class Alerts:
    """Used by one thread."""

    name = "alerts"

    def __init__(
        self,
        db: UpkeepDB,
        config: AlertingConfig,
        look: Callable[[], Iterable[Sample]],
        clocks: Clocks | None = None,
    ) -> None:
        """``look``: what a scrape would look at, beside what is counted."""
        self._db, self._look, self._clocks = db, look, clocks or Clocks()
        self._rules = [rule for rule in RULES if rule.name not in config.ignore]
        self._ways = ways(config)
        self._burning: Burning | None = None
        #: By way: what is known there to burn.
        self._told: dict[str, dict[str, Told]] = {way: {} for way in self._ways}
        self._not_before = dict.fromkeys(self._ways, float("-inf"))
        self._next = float("-inf")
        self._detail: Mapping[str, object] = {}

    def step(self, deadline: Deadline) -> Step:
        now = self._clocks.forwards()
        if now >= self._next:
            burning = self._burning = self._burning or self._begin(deadline)
            burning.look(now, self._clocks.of_day(), seen(self._look(), burning.names))
            self._next = now + EVERY_S
            self._tell(now, self._burning.now)
            self._detail = {
                "burning": [self._as_told(alert) for alert in self._burning.now],
                "told": {
                    way: {key: asdict(each) for key, each in told.items()} for way, told in self._told.items()
                },
            }
        return Step(Pace.IDLE, self._detail)

    def _begin(self, deadline: Deadline) -> Burning:
        """Go on where the leader of before ended."""
        before = [each for each in self._db.workers(deadline) if each.name == self.name]
        told = before[0].detail.get("told") if before else None
        if isinstance(told, Mapping):
            for way in self._ways:
                self._told[way] = {key: Told(**each) for key, each in told.get(way, {}).items()}
        known = {key for each in self._told.values() for key in each}
        return Burning(self._rules, known)

    def _as_told(self, alert: Alert) -> dict[str, str | float]:
        since = next((told[alert.key].since for told in self._told.values() if alert.key in told), None)
        return asdict(self._new(alert)) | ({} if since is None else {"since": since})

    def _new(self, alert: Alert) -> Told:
        rule = alert.rule
        return Told(
            alert.key, rule.severity, alert.summary, alert.command, rule.runbook, self._clocks.of_day()
        )

    def _tell(self, now: float, burning: list[Alert]) -> None:
        """Each way what is new there, and what is over; one that could not be used is tried again later."""
        for name, way in self._ways.items():
            told = self._told[name]
            fresh = [self._new(alert) for alert in burning if alert.key not in told]
            still = {alert.key for alert in burning} | set(self._burning.unsure if self._burning else ())
            over = [each for key, each in told.items() if key not in still]
            if not (fresh or over) or now < self._not_before[name]:
                continue
            try:  # one after the other, so that what was told is not told again when the other could not be
                if fresh:
                    way(fresh, ())
                    told.update({each.alert: each for each in fresh})
                if over:
                    way((), over)
                    for each in over:
                        del told[each.alert]
            except OSError as e:  # of any network, and of urllib and smtplib
                log.warning("alerts could not be told by %s: %s", name, type(e).__name__)
                self._not_before[name] = now + RETRY_S
