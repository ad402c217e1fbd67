"""Which alerts burn, by what a service looks at itself: the same table that Prometheus goes by."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from distfs.alerting.expression import History, Labels, Seen
from distfs.alerting.rules import RULES, Rule, filled


class Alert(NamedTuple):
    """One rule, of one thing that it is about."""

    rule: Rule
    labels: Labels

    @property
    def key(self) -> str:
        """``DistfsNodeDown node=3``."""
        return " ".join([self.rule.name, *(f"{label}={value}" for label, value in self.labels)])

    @property
    def summary(self) -> str:
        return filled(self.rule.summary, dict(self.labels))

    @property
    def command(self) -> str:
        return filled(self.rule.command, dict(self.labels))


class Burning:
    """For one thread."""

    def __init__(self, rules: Iterable[Rule] = RULES, known: Collection[str] = ()) -> None:
        """``known``: keys of alerts that burnt a moment ago, as another process saw it: of those nobody waits again
        until they have been so for long enough."""
        self._rules = tuple(rules)
        self._history = History(rule.condition for rule in self._rules)
        self._since: dict[str, float] = dict.fromkeys(known, float("-inf"))
        self.now: list[Alert] = []

    def look(self, now: float, clock: float, seen: Seen) -> None:
        """``now``: on a clock that only goes forwards; ``clock``: of the day. ``seen``: all metrics."""
        self._history.add(now, clock, seen)
        found = [Alert(rule, labels) for rule in self._rules for labels in rule.condition.at(self._history)]
        self._since = {alert.key: self._since.get(alert.key, now) for alert in found}
        self.now = [alert for alert in found if now - self._since[alert.key] >= alert.rule.holds]
