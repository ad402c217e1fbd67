"""Conditions over metrics, each in two forms: PromQL's text, and the same found here in what was looked at.

Only what the table of alerts needs. Prometheus extrapolates at the ends of a window, and we do not: a test feeds
both the same numbers and compares which alerts burn.
"""

from __future__ import annotations

import operator
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

from distfs.telemetry.metrics import Metric

#: Of one series, by name.
Labels = tuple[tuple[str, str], ...]
Series = Mapping[Labels, float]
#: By a series' whole name, as `distfs_http_queue_seconds_bucket`.
Seen = Mapping[str, Series]

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "==": operator.eq,
    "<=": operator.le,
}
_HOW: Mapping[str, Callable[[Iterable[float]], float]] = {"sum": sum, "max": max, "min": min}


class Look(NamedTuple):
    """What one look found, of what conditions over time need."""

    at: float  # seconds; on a clock that only goes forwards
    found: Mapping[str, Series]  # by the text of what was looked for


class Expression(Protocol):
    """Each has a value for some labels."""

    @property
    def promql(self) -> str: ...

    def at(self, history: History) -> Series:
        """As it is at the last look."""

    @property
    def parts(self) -> tuple[Expression, ...]:
        """What it is made of."""


class History:
    """What was seen at the last look, and before that what some condition looks back at. For one thread."""

    def __init__(self, conditions: Iterable[Expression]) -> None:
        parts = [part for each in conditions for part in all_parts(each)]
        over = [part for part in parts if isinstance(part, Over)]
        self.names = frozenset(part.name for part in parts if isinstance(part, Of))
        self._wanted = {each.of.promql: each.of for each in over}
        self._longest = max((each.window for each in over), default=0.0)
        self._looks: deque[Look] = deque()
        self.seen: Seen = {}
        self.now = self.clock = 0.0

    def add(self, now: float, clock: float, seen: Seen) -> None:
        """``now``: on a clock that only goes forwards; ``clock``: of the day."""
        self.now, self.clock, self.seen = now, clock, seen
        self._looks.append(Look(now, {name: of.at(self) for name, of in self._wanted.items()}))
        while now - self._looks[0].at > self._longest:
            self._looks.popleft()

    def end_look(self) -> None:
        """What no condition looks back at is not kept until the next."""
        self.seen = {}

    def back(self, of: Of, window: float) -> Mapping[Labels, list[tuple[float, float]]]:
        """When it was what, in the window, by labels."""
        found: dict[Labels, list[tuple[float, float]]] = {}
        for look in self._looks:
            if self.now - look.at <= window:
                for labels, value in look.found[of.promql].items():
                    found.setdefault(labels, []).append((look.at, value))
        return found


def all_parts(expression: Expression) -> Iterable[Expression]:
    yield expression
    for part in expression.parts:
        yield from all_parts(part)


@dataclass(frozen=True, slots=True)
class Of:
    """A metric, its series put together ``by`` some labels. ``where``: label -> pattern; one that begins with ``!``
    must not match."""

    metric: Metric
    how: str = "max"
    by: tuple[str, ...] = ()
    where: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""  # of a histogram: _bucket, _count
    absolute: bool = False

    @property
    def name(self) -> str:
        return self.metric.name + self.suffix

    @property
    def selector(self) -> str:
        tests = [
            f'{label}!~"{pattern[1:]}"' if pattern[0] == "!" else f'{label}=~"{pattern}"'
            for label, pattern in self.where.items()
        ]
        return self.name + (f"{{{', '.join(tests)}}}" if tests else "")

    def together(self, inside: str) -> str:
        by = f" by ({', '.join(self.by)})" if self.by else ""
        return f"{self.how}{by} ({inside})"

    @property
    def promql(self) -> str:
        return self.together(f"abs({self.selector})" if self.absolute else self.selector)

    @property
    def parts(self) -> tuple[Expression, ...]:
        return ()

    def at(self, history: History) -> Series:
        found: dict[Labels, list[float]] = {}
        for labels, value in history.seen.get(self.name, {}).items():
            named = dict(labels)
            if all(_matches(named.get(label, ""), pattern) for label, pattern in self.where.items()):
                key = tuple((label, named[label]) for label in sorted(self.by) if label in named)
                found.setdefault(key, []).append(abs(value) if self.absolute else value)
        return {labels: _HOW[self.how](values) for labels, values in found.items()}


def _matches(value: str, pattern: str) -> bool:
    if pattern[0] == "!":
        return not re.fullmatch(pattern[1:], value)
    return bool(re.fullmatch(pattern, value))


@dataclass(frozen=True, slots=True)
class Over:
    """What became of it in a window. ``function``: increase, rate, deriv, or predict_linear for ``ahead`` seconds."""

    function: str
    of: Of
    window: float
    ahead: float = 0.0

    @property
    def promql(self) -> str:
        more = f", {self.ahead:.0f}" if self.function == "predict_linear" else ""
        return self.of.together(f"{self.function}({self.of.selector}[{in_time(self.window)}]{more})")

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.of,)

    def at(self, history: History) -> Series:
        back = history.back(self.of, self.window)
        return {
            labels: self._of_points(points, history.now) for labels, points in back.items() if len(points) > 1
        }

    def _of_points(self, points: list[tuple[float, float]], now: float) -> float:
        if self.function in ("increase", "rate"):
            pairs = pairwise(points)
            grown = sum(after - before if after >= before else after for (_, before), (_, after) in pairs)
            return grown / self.window if self.function == "rate" else grown
        slope, here = _line([(at - now, value) for at, value in points])
        return slope if self.function == "deriv" else here + slope * self.ahead


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """By least squares: its slope, and its height at 0."""
    count = len(points)
    x, y = sum(at for at, _ in points) / count, sum(value for _, value in points) / count
    across = sum((at - x) ** 2 for at, _ in points)
    slope = sum((at - x) * (value - y) for at, value in points) / across if across else 0.0
    return slope, y - slope * x


@dataclass(frozen=True, slots=True)
class Share:
    """One as a part of another, where there is some of that."""

    part: Expression
    whole: Expression

    @property
    def promql(self) -> str:
        return f"{self.part.promql} / {self.whole.promql}"

    @property
    def parts(self) -> tuple[Expression, ...]:
        return self.part, self.whole

    def at(self, history: History) -> Series:
        whole = self.whole.at(history)
        return {key: value / whole[key] for key, value in self.part.at(history).items() if whole.get(key)}


@dataclass(frozen=True, slots=True)
class Rest:
    """What of the whole is no part of it: 1 - the share."""

    share: Share

    @property
    def promql(self) -> str:
        return f"1 - {self.share.promql}"

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.share,)

    def at(self, history: History) -> Series:
        return {labels: 1 - value for labels, value in self.share.at(history).items()}


@dataclass(frozen=True, slots=True)
class Less:
    """The whole without a part of it."""

    whole: Expression
    part: Expression

    @property
    def promql(self) -> str:
        return f"({self.whole.promql} - {self.part.promql})"

    @property
    def parts(self) -> tuple[Expression, ...]:
        return self.whole, self.part

    def at(self, history: History) -> Series:
        part = self.part.at(history)
        return {key: value - part[key] for key, value in self.whole.at(history).items() if key in part}


@dataclass(frozen=True, slots=True)
class Until:
    """Seconds until a moment."""

    moment: Of

    @property
    def promql(self) -> str:
        return f"{self.moment.promql} - time()"

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.moment,)

    def at(self, history: History) -> Series:
        return {labels: value - history.clock for labels, value in self.moment.at(history).items()}


@dataclass(frozen=True, slots=True)
class Is:
    """Where it is above a limit, or below."""

    what: Expression
    sign: str
    limit: float

    @property
    def promql(self) -> str:
        return f"{self.what.promql} {self.sign} {self.limit:g}"

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.what,)

    def at(self, history: History) -> Series:
        is_so = _OPERATORS[self.sign]
        return {labels: value for labels, value in self.what.at(history).items() if is_so(value, self.limit)}


@dataclass(frozen=True, slots=True)
class Both:
    """The first, where the others hold, too. All have the same labels."""

    each: tuple[Expression, ...]

    @property
    def promql(self) -> str:
        return " and ".join(part.promql for part in self.each)

    @property
    def parts(self) -> tuple[Expression, ...]:
        return self.each

    def at(self, history: History) -> Series:
        first, *others = (part.at(history) for part in self.each)
        return {labels: value for labels, value in first.items() if all(labels in other for other in others)}


@dataclass(frozen=True, slots=True)
class Said:
    """What only Prometheus can tell, such as whether it reaches us."""

    promql: str

    @property
    def parts(self) -> tuple[Expression, ...]:
        return ()

    def at(self, history: History) -> Series:
        return {}


def in_time(seconds: float) -> str:
    """As Prometheus writes it."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
