"""Which alerts burn, by what a service looks at itself: the same table that Prometheus goes by."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from distfs.alerting.expression import History, Labels, Over, Seen, all_parts
from distfs.alerting.rules import RULES, Rule, filled

_FIRST_LOOKS_S = 60.0


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
        return f"distfs {filled(self.rule.command, dict(self.labels))}"


class Burning:
    """For one thread."""

    def __init__(self, rules: Iterable[Rule] = RULES, known: Collection[str] = ()) -> None:
        """``known``: keys of alerts that burnt a moment ago, as another process saw it: of those nobody waits again
        until they have been so for long enough."""
        self._rules = tuple(rules)
        self._history = History(rule.condition for rule in self._rules)
        self._since: dict[str, float] = dict.fromkeys(known, float("-inf"))
        self._kept = {key: self._least(key) for key in known}
        self._begun: float | None = None
        self.now: list[Alert] = []

    def _least(self, key: str) -> float:
        """How long it takes until it can be told that one is over: what looks back sees little at first."""
        windows = [
            part.window
            for rule in self._rules
            if rule.name == key.partition(" ")[0]
            for part in all_parts(rule.condition)
            if isinstance(part, Over)
        ]
        return max(_FIRST_LOOKS_S, min(windows, default=0.0))

    @property
    def names(self) -> Collection[str]:
        """Of all metrics that the rules are about."""
        return self._history.names

    @property
    def unsure(self) -> Collection[str]:
        """Of what burnt before: what may burn still."""
        return self._kept

    def look(self, now: float, clock: float, seen: Seen) -> None:
        """``now``: on a clock that only goes forwards; ``clock``: of the day. ``seen``: all of ``names``."""
        self._history.add(now, clock, seen)
        found = [Alert(rule, labels) for rule in self._rules for labels in rule.condition.at(self._history)]
        self._history.end_look()
        begun = self._begun = now if self._begun is None else self._begun
        self._kept = {key: least for key, least in self._kept.items() if now - begun < least}
        self._since = {alert.key: self._since.get(alert.key, now) for alert in found} | {
            key: float("-inf") for key in self._kept
        }
        self.now = [alert for alert in found if now - self._since[alert.key] >= alert.rule.holds]
