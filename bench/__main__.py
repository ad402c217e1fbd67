"""``python -m bench``: distfs's speed and memory on this machine, against a floor doing the same work bare.

Starts and stops everything itself, in a temporary folder on the disk to measure, and leaves only a JSON file.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from bench import (
    access,
    admission,
    cold,
    compression,
    deadlines,
    decisions,
    fairness,
    footprint,
    forms,
    heads,
    healing,
    hedge,
    hot,
    idle,
    lost,
    medium,
    memory,
    observed,
    pool,
    rebuilt,
    report,
    slow,
    small,
    targets,
    throughput,
    tls,
)
from bench.report import Options
from distfs.errors import DistfsError, TooSlow

SCENARIOS: dict[str, tuple[Callable[[Options, ExitStack], object], str]] = {
    "throughput": (throughput.run, "upload and download against the floor, CPU time, memory"),
    "memory": (memory.run, "peak memory at 1 GB and at 10 GB"),
    "small": (small.run, "4 KiB files over 8 and 64 connections, beside a floor of their own (wants wrk)"),
    "hot": (hot.run, "where the time of 4 KiB files goes (wants wrk and py-spy)"),
    "medium": (medium.run, "1 MiB files over 16 connections, beside one large file"),
    "cold": (
        cold.run,
        "a large file that no page cache has, beside a plain dd of its fragments (wants root)",
    ),
    "slow": (slow.run, "many slow downloads and uploads at once, and a fast client beside them"),
    "idle": (idle.run, "thousands of connections without a request, and others beside them"),
    "footprint": (
        footprint.run,
        "memory of all parts with nothing to do, and their CPU time for a large file",
    ),
    "codes": (healing.run_codes, "4+2 beside 1+1, upload and download, also with two nodes down"),
    "repair": (healing.run_repair, "a lost node made anew beside the disk's own speed; CPU of idle upkeep"),
    "fairness": (fairness.run, "8 clients under a cap in both modes, and what the accounting costs"),
    "admission": (
        admission.run,
        "what it costs to promise room to an upload, beside a service that does not",
    ),
    "deadlines": (deadlines.run, "what it costs to look at the clock wherever one waits, 600 MB up and down"),
    "pool": (pool.run, "connections to nodes kept, beside one a request: 4 KiB and 1 MiB"),
    "hedge": (hedge.run, "1 MiB downloads with one of three nodes 200 ms late, beside a healthy cluster"),
    "decisions": (decisions.run, "upkeep's and placement's decisions on a large cluster, without any I/O"),
    "forms": (forms.run, "forms of 32 MiB, whatever their bytes: within 3 times of random ones"),
    "compression": (
        compression.run,
        "text, logs, code, pictures: what compression saves, and MB/s beside none",
    ),
    "heads": (heads.run, "the head of a request, read by our parser and by those of others"),
    "rebuilt": (rebuilt.run, "a lost MetaDB made anew from the nodes: fragments a second"),
    "lost": (
        lost.run,
        "a large node is gone: how soon repair knows what to do, and what asking costs a slice",
    ),
    "tls": (
        tls.run,
        "HTTPS beside HTTP, and mutual TLS to the nodes beside none (wants wrk and cryptography)",
    ),
    "observed": (
        observed.run,
        "logs and metrics on beside off: large and small files; lines of the log in MetaDB (wants wrk)",
    ),
    "access": (
        access.run,
        "a token and a link beside neither; what a 404 tells; a user beside wrong tokens (wants wrk)",
    ),
    "floor": (throughput.run_floor, "the floor alone; only when named"),
}
DEFAULT = (
    "throughput",
    "memory",
    "small",
    "hot",
    "medium",
    "cold",
    "slow",
    "idle",
    "footprint",
    "codes",
    "repair",
    "fairness",
    "admission",
    "deadlines",
    "pool",
    "hedge",
    "decisions",
    "forms",
    "heads",
    "lost",
    "rebuilt",
    "compression",
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    options = Options(
        work=arguments.work,
        mb=arguments.mb,
        runs=arguments.runs,
        memory_mb=tuple(arguments.memory_mb),
        seconds=arguments.seconds,
        connections=arguments.connections,
        repair_mb=arguments.repair_mb,
        idle_s=arguments.idle_s,
        slices=arguments.slices,
        batch=arguments.batch,
        lost=arguments.lost,
        slow=arguments.slow,
        slow_s=arguments.slow_s,
        idle=arguments.idle,
    )
    _heed_signals()
    results: dict[str, object] = {}
    failed = False
    try:
        for name in arguments.only or DEFAULT:
            print(f"== {name}", flush=True)
            try:
                results[name] = _measure(name, options, arguments.limit)
            except DistfsError as e:
                if isinstance(e, report.GoalMissed):
                    results[name] = e.found
                print(f"bench: {name}: {e}", file=sys.stderr)
                failed = True
    except KeyboardInterrupt:
        print("bench: interrupted; everything it started is stopped and removed", file=sys.stderr)
        return 130
    if results:
        print(f"\nsaved {report.save(arguments.results, options, results)}")
    return 1 if failed else 0


def _measure(name: str, options: Options, limit_s: int) -> object:
    """One scenario. Its processes and files are gone when this returns or raises, Ctrl-C included."""
    with ExitStack() as stack:  # unwinds from the last to the first
        stack.callback(_heed_signals)
        cleanup = stack.enter_context(ExitStack())
        stack.callback(_ignore_signals)
        with _time_limit(limit_s):
            return SCENARIOS[name][0](options, cleanup)


def _heed_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def _ignore_signals() -> None:
    """An impatient second Ctrl-C must not cut the cleaning up short."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _ignore_signals()
    raise KeyboardInterrupt


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Raises TooSlow in the body after ``seconds``."""

    def expire(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"took longer than {seconds} s; raise --limit or measure less")

    signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _parser() -> argparse.ArgumentParser:
    scenarios = "\n".join(f"  {name:12} {words}" for name, (_, words) in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"{__doc__}\nscenarios:\n{scenarios}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", metavar="NAME", choices=SCENARIOS, action="append", help="this scenario; may be repeated")
    add("--work", metavar="DIR", type=Path, default=targets.ROOT / "build", help="on the disk to measure")
    add(
        "--mb",
        type=_positive,
        default=600,
        help="throughput, codes, medium, cold, slow, footprint: MB a large file (%(default)s)",
    )
    add("--runs", type=_positive, default=5, help="runs, or turns, after a warm-up (%(default)s)")
    add(
        "--memory-mb",
        type=_positive,
        nargs="+",
        default=[1000, 10000],
        help="memory: MB a file (%(default)s)",
    )
    add("--seconds", type=_positive, default=2, help="small: seconds of each measurement (%(default)s)")
    add("--connections", type=_positive, default=8, help="small, hot: connections of wrk (%(default)s)")
    _add_amounts(add)
    return parser


def _add_amounts(add: Callable[..., object]) -> None:
    add("--repair-mb", type=_positive, default=2000, help="repair: MB on the lost node (%(default)s)")
    add(
        "--idle-s",
        type=_positive,
        default=30,
        help="repair, footprint: seconds with nothing to do (%(default)s)",
    )
    add(
        "--slices",
        type=_positive,
        default=100_000,
        help="decisions: slices, on a hundredth as many nodes (%(default)s)",
    )
    add("--batch", type=_positive, default=50, help="admission: small files in a row (%(default)s)")
    add("--lost", type=_positive, default=1_000_000, help="lost: slices on the lost node (%(default)s)")
    add("--slow", type=_positive, default=1000, help="slow: downloads, then uploads, at once (%(default)s)")
    add("--slow-s", type=_positive, default=30, help="slow: seconds that each takes (%(default)s)")
    add("--idle", type=_positive, default=10_000, help="idle: connections (%(default)s)")
    add("--limit", metavar="S", type=_positive, default=900, help="seconds a scenario may take (%(default)s)")
    add(
        "--results",
        metavar="DIR",
        type=Path,
        default=Path(__file__).parent / "results",
        help="where JSON goes",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


if __name__ == "__main__":
    sys.exit(main())
