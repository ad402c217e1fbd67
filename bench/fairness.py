"""Bandwidth: how eight clients share a cap in both modes, and what the accounting costs where there is none."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import curl, noise
from bench.clock import timed
from bench.report import Options, spread, table
from bench.targets import Distfs, need_room, workspace
from bench.turns import Overhead
from distfs.config.callers import Caller
from distfs.config.settings import MIB, BandwidthConfig, CallersConfig
from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.limits.bandwidth import Bandwidth

CLIENTS = 8
CAP = 24_000_000  # bytes a second of all clients together
MOST = CAP  # bytes each downloads, or --mb if that is less: alone it would take a second
STAGGER_S = 0.05  # between two clients' starts, so that there is an order
GOAL = 0.03  # of the time, at most, for the accounting
_UNLIMITED = "1PB/s"  # a cap that is there and never holds anybody back
_TAKES = 200_000


@dataclass(slots=True)
class Shares:
    """Eight downloads at once, in the order they were started."""

    mode: str
    size: int  # bytes of each
    ends_s: list[float]  # since the first began
    rates: list[float]  # bytes a second, each over its own time

    @property
    def jain(self) -> float:
        """Jain's index of the rates (Jain, Chiu, Hawe 1984): 1 all alike, 1/8 one has everything."""
        return sum(self.rates) ** 2 / (len(self.rates) * sum(rate**2 for rate in self.rates))

    @property
    def total(self) -> float:
        """Bytes a second, all together, until the last had ended."""
        return len(self.rates) * self.size / max(self.ends_s)


def run(options: Options, cleanup: ExitStack) -> dict[str, object]:
    """Fair, then batch; then the overhead on files of ``--mb``. Raises Unavailable when a download fails."""
    folder = cleanup.enter_context(workspace(options.work))
    size = options.mb * 10**6
    need_room(folder, size * (1 + 2 * (2 * options.runs + 3)))
    distfs = cleanup.enter_context(Distfs.running(folder))
    source = folder / "noise.bin"
    small = min(size, MOST)
    noise.write_file(source, small)
    url = distfs.download_url(curl.put(distfs.put_url, source))
    shares = [_share(distfs, mode, url, small) for mode in ("fair", "batch")]
    _print_shares(shares)
    distfs.configure("bandwidth: {}")
    noise.write_file(source, size)
    overheads = _overheads(distfs, source, size, options.runs)
    take_ns = _take_ns()
    _print_overheads(overheads, take_ns)
    return {"shares": shares, "jain": [s.jain for s in shares], "overhead": overheads, "take_off_ns": take_ns}


def _share(distfs: Distfs, mode: str, url: str, size: int) -> Shares:
    distfs.configure(f"bandwidth: {{cap_out: {CAP}, mode: {mode}}}")
    began, ended = [0.0] * CLIENTS, [0.0] * CLIENTS
    failures: list[DistfsError] = []

    def fetch(number: int) -> None:
        began[number] = time.perf_counter()
        try:
            curl.discard(url, size)
        except DistfsError as e:
            failures.append(e)
        ended[number] = time.perf_counter()

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
        time.sleep(STAGGER_S)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    rates = [size / (end - start) for start, end in zip(began, ended, strict=True)]
    return Shares(mode, size, [end - began[0] for end in ended], rates)


def _overheads(distfs: Distfs, source: Path, size: int, runs: int) -> list[Overhead]:
    answers = [curl.put(distfs.put_url, source)]
    ways: list[tuple[Overhead, Callable[[], object]]] = [
        (Overhead("upload", size), lambda: answers.append(curl.put(distfs.put_url, source))),
        (Overhead("download", size), lambda: curl.discard(distfs.download_url(answers[0]), size)),
    ]
    for overhead, transfer in ways:
        transfer()
        overhead.measure(runs, partial(_timed, distfs, transfer))
    return [overhead for overhead, _ in ways]


def _timed(distfs: Distfs, transfer: Callable[[], object], capped: bool) -> float:
    cap = _UNLIMITED if capped else "0"
    distfs.configure(f"bandwidth: {{cap_in: {cap}, cap_out: {cap}}}")
    return timed(transfer)[1]


def _take_ns() -> float:
    """Nanoseconds that a block costs where nothing is capped."""
    share = Bandwidth(BandwidthConfig(), CallersConfig()).transfer(
        Caller("127.0.0.1", lambda name: None), "out"
    )
    deadline = Deadline(600)
    start = time.perf_counter()
    for _ in range(_TAKES):
        share.take(MIB, deadline)
    return (time.perf_counter() - start) / _TAKES * 1e9


def _print_shares(all_shares: Sequence[Shares]) -> None:
    print(
        f"\n{CLIENTS} clients, {all_shares[0].size / 1e6:.0f} MB each, a cap of {CAP / 1e6:.0f} MB/s for all"
    )
    rows = [["", *(f"{s.mode}, {what}" for s in all_shares for what in ("MB/s", "ends, s"))]]
    for number in range(CLIENTS):
        figures = [x for s in all_shares for x in (f"{s.rates[number] / 1e6:.1f}", f"{s.ends_s[number]:.1f}")]
        rows.append([f"client {number + 1}", *figures])
    means = [x for s in all_shares for x in (f"{s.total / 1e6:.1f}", f"{statistics.mean(s.ends_s):.1f}")]
    rows.append(["all together, mean end", *means])
    rows.append(["Jain's index of the rates", *(x for s in all_shares for x in (f"{s.jain:.3f}", ""))])
    table(rows)


def _print_overheads(overheads: Sequence[Overhead], take_ns: float) -> None:
    first = overheads[0]
    print(f"\naccounting, {first.size / 1e6:.0f} MB, {len(first.off_s)} pairs in turns: median (min to max)")
    rows = [["", "no cap, s", "a cap that never holds, s", "time ratio, pair by pair"]]
    rows += [[o.way, spread(o.off_s, 2), spread(o.on_s, 2), spread(o.ratios, 3)] for o in overheads]
    table(rows)
    asked = -(-first.size // MIB)
    share = asked * take_ns / 1e9 / min(min(o.off_s) for o in overheads)
    verdict = "met" if share < GOAL else "missed"
    print(f"  no cap: {take_ns:.0f} ns a block, {share:.4%} of the fastest run (goal {GOAL:.0%}: {verdict})")
