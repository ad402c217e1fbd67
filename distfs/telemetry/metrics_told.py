"""How what is counted is told to Prometheus: the one place that knows its library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from distfs import __version__, errors
from distfs.telemetry.metrics import (
    BOTH,
    BUCKETS,
    BUILD,
    COUNTER,
    HISTOGRAM,
    METRICS,
    SERVICE,
    WIDTH,
    Metric,
    Sample,
    exemplars,
    sums,
)

if TYPE_CHECKING:
    from prometheus_client import Metric as Family

_SHOWN_EMPTY = 64  # of more series those that never occurred are not told


def rendered(accept: str, looked_at: Iterable[Sample], part: str = SERVICE) -> tuple[str, bytes]:
    """-> the type and the text: Prometheus' own, or OpenMetrics for who asks for it. Raises Unsupported."""
    try:
        from prometheus_client import exposition
    except ImportError as e:
        raise errors.Unsupported("metrics need an extra: pip install 'distfs[metrics]'") from e
    encoder, kind = exposition.choose_encoder(accept)
    return kind, encoder(_Collected([Sample(BUILD, 1, (__version__,)), *looked_at], part))


class _Collected:
    """All metrics at one moment, as the library asks for them."""

    def __init__(self, looked_at: list[Sample], part: str) -> None:
        self._metrics = [metric for metric in METRICS if metric.part in (part, BOTH)]
        self._sums = sums()
        self._looked_at: dict[Metric, list[Sample]] = {}
        for sample in looked_at:
            self._looked_at.setdefault(sample.metric, []).append(sample)

    def collect(self) -> Iterator[Family]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for metric in self._metrics:
            if metric.kind == HISTOGRAM:
                yield self._histogram(metric)
                continue
            family: CounterMetricFamily | GaugeMetricFamily = (
                CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
            )(metric.name, metric.meaning, labels=list(metric.labels))
            for labels, value in self._values(metric):
                family.add_metric(labels, value)
            yield family

    def _values(self, metric: Metric) -> Iterator[tuple[tuple[str, ...], float]]:
        if metric.first < 0:
            yield from ((sample.labels, sample.value) for sample in self._looked_at.get(metric, ()))
            return
        series = metric.series
        all_ = len(metric.labels) < 2 and len(series) <= _SHOWN_EMPTY  # of the products most never occur
        for at, labels in enumerate(series):
            value = self._sums[metric.first + at]
            if value or all_:
                yield labels, value

    def _histogram(self, metric: Metric) -> Family:
        from prometheus_client.core import Exemplar, HistogramMetricFamily

        family = HistogramMetricFamily(metric.name, metric.meaning, labels=list(metric.labels))
        for at, labels in enumerate(metric.series):
            first = metric.first + at * WIDTH
            *counts, total = self._sums[first : first + WIDTH]
            bounds = [*(str(float(bound)) for bound in BUCKETS), "+Inf"]
            if any(counts):
                buckets = [
                    (bound, count, Exemplar({"trace_id": shown[0]}, *shown[1:]))
                    if (shown := exemplars.get(first + number))
                    else (bound, count)
                    for number, (bound, count) in enumerate(zip(bounds, accumulate(counts), strict=True))
                ]
                family.add_metric(labels, buckets, total)
        return family
