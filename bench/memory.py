"""Memory: the most each process holds while a large file comes in and goes out, by the file's size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import curl, noise, processes
from bench.curl import Content
from bench.report import Options, table
from bench.targets import Distfs, need_room, workspace

COPIES = 2
GOALS_MB = {"service": 300, "node": 100}
GROWTH = 1.20  # of the peak, from the smallest size to the largest


@dataclass(frozen=True, slots=True)
class Step:
    """One transfer and the peak of every process during it."""

    size: int  # bytes
    direction: str  # 'up' or 'down'
    peak_bytes: dict[str, int]  # by process


Upload = Callable[[Distfs, Path, int], tuple[str, Content]]


def run(options: Options, cleanup: ExitStack) -> dict[str, list[Step]]:
    """Both kinds of body, each with a distfs of its own so that one's files are gone before the next.

    Raises Corrupt when a byte differs on the way back.
    """
    sizes = [mb * 10**6 for mb in sorted(options.memory_mb)]
    kinds: dict[str, Upload] = {"chunked (curl -T -)": _chunked, "Content-Length (curl -T FILE)": _from_file}
    results = {}
    for kind, upload in kinds.items():
        one = cleanup.enter_context(ExitStack())
        folder = one.enter_context(workspace(options.work))
        need_room(folder, COPIES * sum(sizes) + max(sizes))
        distfs = one.enter_context(Distfs.running(folder))
        steps = [step for size in sizes for step in _there_and_back(distfs, folder, size, upload)]
        one.close()
        _print(kind, steps)
        results[kind] = steps
    return results


def _there_and_back(distfs: Distfs, folder: Path, size: int, upload: Upload) -> list[Step]:
    processes.reset_peaks(distfs.processes())
    answer, content = upload(distfs, folder, size)
    up = Step(size, "up", processes.peak_memory(distfs.processes()))
    processes.reset_peaks(distfs.processes())
    curl.fetch(distfs.download_url(answer), size).expect(content, f"file of {size} bytes")
    return [up, Step(size, "down", processes.peak_memory(distfs.processes()))]


def _chunked(distfs: Distfs, folder: Path, size: int) -> tuple[str, Content]:
    return curl.put_stream(distfs.put_url, size)


def _from_file(distfs: Distfs, folder: Path, size: int) -> tuple[str, Content]:
    source = folder / "noise.bin"
    try:
        digest = noise.write_file(source, size)
        return curl.put(distfs.put_url, source), Content(size, digest)
    finally:
        source.unlink(missing_ok=True)


def _print(kind: str, steps: Sequence[Step]) -> None:
    print(f"\npeak resident memory in MB, {kind}; every file came back byte for byte")
    columns = [f"{step.size / 1e6:.0f} MB {step.direction}" for step in steps]
    rows = [["", *columns, "growth", "goal"]]
    smallest, largest = steps[0].size, steps[-1].size
    for label in steps[0].peak_bytes:
        role = label.rstrip("0123456789 ")
        if role == "PostgreSQL":
            continue  # many, and none sees a file's bytes; the JSON has them
        peaks = [step.peak_bytes.get(label, 0) for step in steps]
        before = max(peak for peak, step in zip(peaks, steps, strict=True) if step.size == smallest)
        after = max(peak for peak, step in zip(peaks, steps, strict=True) if step.size == largest)
        rows.append([label, *(f"{peak / 1e6:.0f}" for peak in peaks), f"{after / before:.2f}"])
        rows[-1].append(_verdict(role, after, after / before))
    table(rows)


def _verdict(role: str, peak: int, growth: float) -> str:
    if role not in GOALS_MB:
        return ""
    met = peak < GOALS_MB[role] * 1e6 and growth <= GROWTH
    return f"< {GOALS_MB[role]}, {GROWTH:.2f}: {'met' if met else 'missed'}"
