"""All that is counted and looked at as numbers, by the names that Prometheus would have: for who has none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate

from distfs.telemetry import metrics
from distfs.telemetry.metrics import BUCKETS, HISTOGRAM, METRICS, NODE, Metric, Sample

Labels = tuple[tuple[str, str], ...]
_BOUNDS = (*(str(float(bound)) for bound in BUCKETS), "+Inf")
_SUFFIXES = ("", "_count", "_bucket")


def seen(looked_at: Iterable[Sample], names: Collection[str]) -> dict[str, dict[Labels, float]]:
    """By name and labels, which are in the order of their names; of all processes of this service.

    ``names``: of what is wanted, a histogram's with its suffix. There are thousands of series, and each is made."""
    found: dict[str, dict[Labels, float]] = {}
    sums = metrics.sums()
    for metric in METRICS:
        if (
            metric.first >= 0
            and metric.part != NODE
            and any(metric.name + suffix in names for suffix in _SUFFIXES)
        ):
            for suffix, labels, value in _counted(metric, sums):
                if metric.name + suffix in names:
                    found.setdefault(metric.name + suffix, {})[_named(metric, labels)] = value
    for sample in looked_at:
        if sample.metric.name in names:
            found.setdefault(sample.metric.name, {})[_named(sample.metric, sample.labels)] = float(
                sample.value
            )
    return found


def _named(metric: Metric, labels: tuple[str, ...]) -> Labels:
    return tuple(sorted(zip(metric.labels, labels, strict=False)))


def _counted(metric: Metric, sums: list[float]) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """-> suffix, values of labels, value. A bucket's bound is the last of its labels."""
    if metric.kind != HISTOGRAM:
        for at, labels in enumerate(metric.series):
            yield "", labels, sums[metric.first + at]
        return
    width = len(_BOUNDS) + 1
    for at, labels in enumerate(metric.series):
        *counts, _ = sums[metric.first + at * width : metric.first + (at + 1) * width]
        upto = list(accumulate(counts))
        yield "_count", labels, upto[-1]
        for bound, value in zip(_BOUNDS, upto, strict=True):
            yield "_bucket", (*labels, bound), value
