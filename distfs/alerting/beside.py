"""What a service tells of itself where nobody else can: that MetaDB is away, by which the worker of alerts leads;
and, while another service leads, what only this one counts. What was told is kept in memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from distfs.alerting.burning import Burning
from distfs.alerting.rules import AWAY, RULES
from distfs.alerting.telling import Telling
from distfs.alerting.worker import EVERY_S, Clocks, Lead
from distfs.config.settings import AlertingConfig
from distfs.telemetry import metrics
from distfs.telemetry.metrics import Sample
from distfs.telemetry.metrics_seen import seen

log = logging.getLogger("distfs.alerts")


class Beside:
    """For one thread."""

    def __init__(
        self,
        config: AlertingConfig,
        look: Callable[[], Iterable[Sample]],
        is_there: Callable[[], bool],
        lead: Lead,
        place: str,
        clocks: Clocks | None = None,
    ) -> None:
        """``look``: as Alerts has it; ``is_there``: whether MetaDB is; ``place``: this service, HOST:PORT."""
        self._look, self._is_there, self._lead, self._clocks = look, is_there, lead, clocks or Clocks()
        rules = [rule for rule in RULES if rule.own and rule.name not in config.ignore]
        self._away = Burning(rule for rule in rules if rule.name == AWAY)
        self._own = [rule for rule in rules if rule.name != AWAY]
        self._burning: Burning | None = None  # None: this service leads, and tells it as a leader
        self._telling = Telling(config, self._clocks.of_day, f"service={place}")

    def run(self, stopping: threading.Event) -> None:
        """Until ``stopping``."""
        while not stopping.wait(EVERY_S):
            try:
                self.step()
            except Exception:  # the thread's outermost edge
                log.exception("alerts of this service stumbled over a bug; they go on")

    def step(self) -> None:
        now, clock = self._clocks.forwards(), self._clocks.of_day()
        self._away.look(now, clock, {metrics.METADB_UP.name: {(): float(self._is_there())}})
        burning = list(self._away.now)
        if now < self._lead.until:
            self._burning = None
        else:
            self._burning = self._burning or Burning(self._own)
            self._burning.look(now, clock, seen(self._look(), self._burning.names))
            burning += self._burning.now
        self._telling.tell(now, burning)
