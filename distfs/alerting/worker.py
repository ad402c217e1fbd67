"""The worker that tells people what burns: in the log, to a webhook, by mail. For those who run no Prometheus.

It is a worker as those of upkeep are: one service of all leads it, in a thread of its own, so whoever is slow to be
told holds up nothing else. What was told stays in its row of MetaDB, by which a successor goes on. What it cannot
see is ``beside`` it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from distfs.alerting.burning import Burning
from distfs.alerting.rules import AWAY, RULES
from distfs.alerting.telling import Telling
from distfs.config.settings import AlertingConfig
from distfs.deadline import Deadline
from distfs.telemetry.metrics import Sample
from distfs.telemetry.metrics_seen import seen
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.step import Pace, Step

EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """One of three seams of tests."""

    forwards: Callable[[], float] = time.monotonic
    of_day: Callable[[], float] = time.time


@dataclass(slots=True)
class Lead:
    """Whether this service leads the worker; said by the worker itself."""

    until: float = field(default=float("-inf"))


class Alerts:
    """Used by one thread."""

    name = "alerts"

    def __init__(
        self,
        db: UpkeepDB,
        config: AlertingConfig,
        look: Callable[[], Iterable[Sample]],
        clocks: Clocks | None = None,
        lead: Lead | None = None,
        silence: float = 4 * EVERY_S,
    ) -> None:
        """``look``: what a scrape would look at, beside what is counted. ``silence``: between two steps, at most."""
        self._db, self._look, self._clocks = db, look, clocks or Clocks()
        self._lead, self._silence = lead or Lead(), silence
        self._rules = [rule for rule in RULES if rule.name not in (AWAY, *config.ignore)]
        self._telling = Telling(config, self._clocks.of_day)
        self._burning: Burning | None = None
        self._next = float("-inf")
        self._detail: Mapping[str, object] = {}

    def step(self, deadline: Deadline) -> Step:
        now = self._clocks.forwards()
        self._lead.until = now + self._silence
        if now >= self._next:
            burning = self._burning = self._burning or self._begin(deadline)
            burning.look(now, self._clocks.of_day(), seen(self._look(), burning.names))
            self._next = now + EVERY_S
            self._telling.tell(now, burning.now, burning.unsure)
            self._detail = self._telling.as_detail(burning.now)
        return Step(Pace.IDLE, self._detail)

    def _begin(self, deadline: Deadline) -> Burning:
        """Go on where the leader of before ended."""
        before = [each for each in self._db.workers(deadline) if each.name == self.name]
        if before:
            self._telling.go_on(before[0].detail.get("told"))
        return Burning(self._rules, self._telling.known)
