"""What was told of what burns, by each way: each alert once when it begins, and once when it is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict

from distfs.alerting.burning import Alert
from distfs.alerting.tell import Told, Way, ways
from distfs.config.settings import AlertingConfig

log = logging.getLogger("distfs.alerts")

#: Somebody who could not be told is tried again after so long.
RETRY_S = 60.0


class Telling:
    """For one thread."""

    def __init__(self, config: AlertingConfig, of_day: Callable[[], float], place: str = "") -> None:
        """``of_day``: a clock. ``place``: a label of all that is told, such as ``service=files:8080``."""
        self._ways: Mapping[str, Way] = ways(config)
        self._of_day, self._place = of_day, f" {place}" if place else ""
        #: By way: what is known there to burn.
        self._told: dict[str, dict[str, Told]] = {way: {} for way in self._ways}
        self._not_before = dict.fromkeys(self._ways, float("-inf"))

    @property
    def known(self) -> set[str]:
        """What somebody was told, and not yet that it is over."""
        return {key for each in self._told.values() for key in each}

    def go_on(self, told: object) -> None:
        """Where another ended, by its ``as_detail``."""
        if isinstance(told, Mapping):
            for way in self._ways:
                self._told[way] = {key: Told(**each) for key, each in told.get(way, {}).items()}

    def as_detail(self, burning: Sequence[Alert]) -> dict[str, object]:
        """For MetaDB."""
        return {
            "burning": [self._since(alert) for alert in burning],
            "told": {
                way: {key: asdict(each) for key, each in told.items()} for way, told in self._told.items()
            },
        }

    def _since(self, alert: Alert) -> dict[str, str | float]:
        new = self._new(alert)
        since = next((told[new.alert].since for told in self._told.values() if new.alert in told), None)
        return asdict(new) | ({} if since is None else {"since": since})

    def _new(self, alert: Alert) -> Told:
        rule, key = alert.rule, f"{alert.key}{self._place}"
        return Told(key, rule.severity, alert.summary, alert.command, rule.runbook, self._of_day())

    def tell(self, now: float, burning: Sequence[Alert], unsure: Collection[str] = ()) -> None:
        """Each way what is new there, and what is over; one that could not be used is tried again later.
        ``unsure``: keys of what may burn still."""
        current = [self._new(alert) for alert in burning]
        still = {each.alert for each in current} | set(unsure)
        for name, way in self._ways.items():
            told = self._told[name]
            fresh = [each for each in current if each.alert not in told]
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
