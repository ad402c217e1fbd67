"""Throughput: distfs against the floor, in turns, on one disk; what it costs in CPU time and memory."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import curl, noise, processes
from bench.curl import Content
from bench.report import Goal, Options, judge, spread, table
from bench.targets import Distfs, Floor, Target, need_room, workspace
from distfs.errors import Corrupt

COPIES = 2
GOAL = 0.95  # of the floor's MB/s, upload and download


@dataclass(slots=True)
class Series:
    """The measured runs of one way through one target."""

    name: str
    size: int  # bytes a run
    seconds: list[float] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)  # by role, all runs together
    peak_bytes: dict[str, int] = field(default_factory=dict)  # by process, over all runs
    ratios: list[float] = field(default_factory=list)  # to the floor's rate, run by run; empty for the floor

    @property
    def rates(self) -> list[float]:
        """MB/s, run by run."""
        return [self.size / 1e6 / seconds for seconds in self.seconds]

    @property
    def cpu_per_gb(self) -> dict[str, float]:
        """CPU seconds per GB, by role."""
        return {role: used / (self.size / 1e9 * len(self.seconds)) for role, used in self.cpu_s.items()}


@dataclass(slots=True)
class Way:
    """One contestant in a round: a transfer through ``target`` and where its figures go."""

    target: Target
    series: Series
    transfer: Callable[[], None]

    def run(self) -> None:
        """One measured transfer, from starting curl to its end."""
        processes.reset_peaks(self.target.processes())
        before = processes.cpu_seconds(self.target.processes())
        curl_before, start = _children_s(), time.perf_counter()
        self.transfer()
        self.series.seconds.append(time.perf_counter() - start)
        after = processes.cpu_seconds(self.target.processes()) | {"curl": _children_s()}
        before["curl"] = curl_before
        for role, used in after.items():
            self.series.cpu_s[role] = self.series.cpu_s.get(role, 0.0) + used - before.get(role, 0.0)
        for label, peak in processes.peak_memory(self.target.processes()).items():
            self.series.peak_bytes[label] = max(peak, self.series.peak_bytes.get(label, 0))


def run(options: Options, cleanup: ExitStack) -> dict[str, list[Series]]:
    """Uploads, then downloads, each in turns after one warm-up. Raises Corrupt when a byte differs, GoalMissed."""
    folder, content, source = _prepare(options, cleanup, uploads=1 + 2 * (options.runs + 1))
    floor = cleanup.enter_context(Floor.running(folder))
    distfs = cleanup.enter_context(Distfs.running(folder))
    uuids: list[str] = []
    ways = [
        _upload_to_floor(floor, source, content),
        Way(distfs, _series("distfs PUT", content), lambda: uuids.append(curl.put(distfs.put_url, source))),
        Way(
            distfs,
            _series("distfs form", content),
            lambda: uuids.append(curl.post_form(distfs.form_url, source)),
        ),
    ]
    uploads = _in_turns(ways, options.runs)
    _print("upload", uploads)
    urls = [floor.put_url, distfs.download_url(uuids[0])]
    downloads = _download(list(zip([floor, distfs], urls, strict=True)), content, options.runs)
    _print("download", downloads)
    for uuid in uuids:
        curl.fetch(distfs.download_url(uuid), content.size).expect(content, f"distfs file {uuid}")
    print(f"  all {len(uuids)} files came back from distfs byte for byte")
    found = {"upload": uploads, "download": downloads}
    judge(_goals(found), found)
    return found


def _goals(found: dict[str, list[Series]]) -> list[Goal]:
    """Of everything but the floor."""
    return [
        Goal(f"{way}, {series.name}, of the floor", statistics.median(series.ratios), GOAL)
        for way, all_series in found.items()
        for series in all_series
        if series.ratios
    ]


def run_floor(options: Options, cleanup: ExitStack) -> dict[str, list[Series]]:
    """The floor alone: what this machine can do. Raises Corrupt when a byte differs."""
    folder, content, source = _prepare(options, cleanup, uploads=1)
    floor = cleanup.enter_context(Floor.running(folder))
    uploads = _in_turns([_upload_to_floor(floor, source, content)], options.runs)
    _print("upload", uploads)
    downloads = _download([(floor, floor.put_url)], content, options.runs)
    _print("download", downloads)
    return {"upload": uploads, "download": downloads}


def _prepare(options: Options, cleanup: ExitStack, uploads: int) -> tuple[Path, Content, Path]:
    """A temporary folder, and in it a file of noise."""
    size = options.mb * 10**6
    folder = cleanup.enter_context(workspace(options.work))
    need_room(folder, size * (1 + COPIES * uploads))
    source = folder / "noise.bin"
    return folder, Content(size, noise.write_file(source, size)), source


def _upload_to_floor(floor: Floor, source: Path, content: Content) -> Way:
    def transfer() -> None:
        digest = curl.put(floor.put_url, source)
        if digest != content.sha256:
            raise Corrupt(f"the floor received sha256 {digest}, sent was {content.sha256}")

    return Way(floor, _series("floor", content), transfer)


def _download(sources: Sequence[tuple[Target, str]], content: Content, runs: int) -> list[Series]:
    """Each target's file checked once, then measured in turns, warm: the software's speed, not the disk's."""
    for target, url in sources:
        curl.fetch(url, content.size).expect(content, target.name)

    def way(target: Target, url: str) -> Way:
        return Way(target, _series(target.name, content), lambda: curl.discard(url, content.size))

    return _in_turns([way(target, url) for target, url in sources], runs)


def _in_turns(ways: Sequence[Way], runs: int) -> list[Series]:
    """A B A B ...: what disturbs the machine for a while disturbs all alike. The first round warms up."""
    for way in ways:
        way.transfer()
    for _ in range(runs):
        for way in ways:
            way.run()
    first = ways[0].series
    for way in ways[1:]:
        way.series.ratios = [mine / floor for mine, floor in zip(way.series.rates, first.rates, strict=True)]
    return [way.series for way in ways]


def _series(name: str, content: Content) -> Series:
    return Series(name, content.size)


def _children_s() -> float:
    """CPU seconds of our children that ended: every curl so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _print(title: str, all_series: Sequence[Series]) -> None:
    first = all_series[0]
    print(f"\n{title}, {first.size / 1e6:.0f} MB, {len(first.seconds)} runs in turns: median (min to max)")
    rows = (
        [series.name, spread(series.rates, 0), spread(series.ratios, 2) if series.ratios else ""]
        for series in all_series
    )
    table([["", "MB/s", "of the floor, pair by pair"], *rows])
    for series in all_series:
        cost = ", ".join(f"{role} {seconds:.2f}" for role, seconds in series.cpu_per_gb.items())
        print(f"  CPU s/GB, {series.name}: {cost}")
    for series in all_series:
        print(f"  peak MB, {series.name}: {processes.summary(series.peak_bytes)}")
