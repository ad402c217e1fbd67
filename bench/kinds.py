"""Services of several kinds over one cluster, beside each other in turns: rates, and CPU time of one unit of work."""

from __future__ import annotations

import ssl
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from bench import curl, processes, small, wrk
from bench.parts import Parts
from bench.report import Options, spread, table


@dataclass(slots=True)
class Figure:
    """One kind of work on one kind of service, turn by turn."""

    unit: str
    rates: list[float] = field(default_factory=list)
    cpu: dict[str, list[float]] = field(default_factory=dict)  # by role, microseconds a unit


@dataclass(slots=True)
class Kind:
    """A service, and what was measured of it by the name of the work."""

    name: str
    url: str
    parts: Parts
    ca: str
    figures: dict[str, Figure] = field(default_factory=dict)

    def measure(self, work: str, unit: str, count: Callable[[], float]) -> None:
        """``count`` does it, and says how many units that were."""
        figure = self.figures.setdefault(work, Figure(unit))
        before = processes.cpu_seconds(self.parts.processes(self.name))
        began = time.perf_counter()
        units = count()
        figure.rates.append(units / (time.perf_counter() - began))
        for role, used in processes.cpu_seconds(self.parts.processes(self.name)).items():
            figure.cpu.setdefault(role, []).append((used - before[role]) * 1e6 / units)

    def measure_large(self, file: Path, options: Options) -> None:
        """Up, and down again."""
        size = file.stat().st_size
        stored: list[str] = []

        def upload() -> float:
            stored.append(curl.put(f"{self.url}/upload/x", file))
            return size / 1e6

        def download() -> float:
            curl.discard(f"{self.url}/download/{stored[-1]}", size)
            return size / 1e6

        self.measure(f"{options.mb} MB up", "MB", upload)
        self.measure(f"{options.mb} MB down", "MB", download)

    def measure_small(self, folder: Path, options: Options) -> None:
        """With wrk, whose list of paths is kept in ``folder``."""

        def load(url: str, what: Sequence[str]) -> float:
            return wrk.load(url, options.connections, options.seconds, what).answers

        paths = small.listed(folder / "paths", self._small_files())
        self.measure("4 KiB GET", "request", lambda: load(self.url, paths))
        self.measure("4 KiB PUT", "request", lambda: load(f"{self.url}/upload/x", ["put", str(small.SIZE)]))

    def _small_files(self) -> list[str]:
        """Paths of some, as many as make no difference to a cache."""
        found = []
        with closing(self.connection()) as connection:
            for number in range(200):
                connection.request("PUT", "/upload/x", number.to_bytes(2, "big") * (small.SIZE // 2))
                found.append(f"/download/{connection.getresponse().read().decode().strip()}")
        return found

    def connection(self) -> HTTPConnection:
        place = urlsplit(self.url)
        if place.scheme == "http":
            return HTTPConnection(place.netloc, timeout=60)
        return HTTPSConnection(place.netloc, timeout=60, context=ssl.create_default_context(cafile=self.ca))


def show(options: Options, kinds: Sequence[Kind]) -> None:
    """A table for each kind of work; of CPU time also as a share of the first kind's."""
    print(f"\n{options.runs} turns; us: CPU time of the service, and of all nodes together, for one")
    for work in kinds[0].figures:
        unit = kinds[0].figures[work].unit
        rows = [[work, f"{unit}s/s", "service us", "nodes us", f"all, of {kinds[0].name}'s"]]
        for kind in kinds:
            figure = kind.figures[work]
            cpu = {role: statistics.median(values) for role, values in figure.cpu.items()}
            first = {role: statistics.median(values) for role, values in kinds[0].figures[work].cpu.items()}
            share = sum(cpu.values()) / max(1e-9, sum(first.values()))
            rows.append(
                [
                    kind.name,
                    spread(figure.rates, 0),
                    f"{cpu['service']:.0f}",
                    f"{cpu['node']:.0f}",
                    f"{share:.2f}",
                ]
            )
        table(rows)
