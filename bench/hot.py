"""Where the time of small files goes: 4 KiB forms and downloads, their CPU time, and a profile of each part."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import disk, processes, profile, wrk
from bench.processes import Process
from bench.profile import Function, Profile
from bench.report import Options, table
from bench.small import SIZE, fill, listed
from bench.targets import Distfs, workspace
from bench.wrk import Load

COPIES = 2
_CEILING_S, _WARM_UP_S, _SECONDS = 2, 2, 8
_SHOWN = 14  # functions of a profile's table; the JSON has more


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run of wrk cost."""

    cpu_ms: dict[str, float]  # CPU milliseconds a request, by role
    system_ms: dict[str, float]  # the part of it inside the kernel
    busy: float  # share of all cores that these processes kept busy


@dataclass(frozen=True, slots=True)
class Result:
    """One verb: its figures, and the profiles taken in a later run, so that they disturb no figure."""

    load: Load
    cost: Cost
    profiles: dict[str, Profile]  # by process


def run(options: Options, cleanup: ExitStack) -> dict[str, Result | float]:
    """PUT (a form of one file), then GET. Raises ConfigError when wrk is missing, Corrupt on a wrong byte."""
    wrk.needed()
    folder = cleanup.enter_context(workspace(options.work))
    distfs = cleanup.enter_context(Distfs.running(folder))
    get = listed(folder / "paths", fill(distfs.port, "/upload/x", "/download/{}"))
    ceiling = disk.durable_files(folder, options.connections, _CEILING_S) / COPIES
    print(f"\nthis disk, bare: {ceiling:.0f} files of 4 KiB a second made durable in {COPIES} copies")
    results: dict[str, Result | float] = {"durable files a second": ceiling}
    for verb, what in {"PUT": ["form", str(SIZE)], "GET": get}.items():
        wrk.load(distfs.form_url, options.connections, _WARM_UP_S, what)
        load, cost = _measure(distfs, options, what)
        result = results[verb] = Result(load, cost, _profiles(distfs, options, what, folder))
        _print(verb, options, result)
    return results


def _measure(distfs: Distfs, options: Options, what: list[str]) -> tuple[Load, Cost]:
    before, system_before = _cpu(distfs)
    used_before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    load = wrk.load(distfs.form_url, options.connections, _SECONDS, what)
    elapsed = time.perf_counter() - start
    after, system_after = _cpu(distfs)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    after["wrk"], before["wrk"] = (u.ru_utime + u.ru_stime for u in (used, used_before))
    requests = max(1, load.answers)
    cpu_ms = _each(after, before, requests)
    system_ms = _each(system_after, system_before, requests)
    busy = sum(cpu_ms.values()) / 1e3 * requests / (elapsed * len(os.sched_getaffinity(0)))
    return load, Cost(cpu_ms, system_ms, busy)


def _cpu(distfs: Distfs) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds so far by role: all, and those in the kernel."""
    everyone = distfs.processes()
    return processes.cpu_seconds(everyone), processes.system_seconds(everyone)


def _each(after: dict[str, float], before: dict[str, float], requests: int) -> dict[str, float]:
    """Milliseconds a request."""
    return {role: (seconds - before.get(role, 0.0)) * 1e3 / requests for role, seconds in after.items()}


def _profiles(distfs: Distfs, options: Options, what: list[str], folder: Path) -> dict[str, Profile]:
    """The service and one node, each under the same load again; empty when py-spy is missing."""
    chosen: dict[str, Process] = {}
    for process in distfs.processes():
        if process.role in ("service", "node"):
            chosen.setdefault(process.role, process)
    profiles = {}
    for role, process in chosen.items():
        with wrk.running(distfs.form_url, options.connections, _SECONDS + 2, what):
            found = profile.record(process.pid, _SECONDS, folder / "profile")
        if found is not None:
            profiles[role] = found
    return profiles


def _print(verb: str, options: Options, result: Result) -> None:
    load, spent = result.load, result.cost
    print(f"\n{verb} of {SIZE // 1024} KiB, {options.connections} connections, {load.seconds:.0f} s")
    print(f"  {load.rate:.0f} requests/s, {load.failed} failed")
    print(f"  latency ms: median {load.p50_ms:.1f}, 99 % {load.p99_ms:.1f}, longest {load.max_ms:.1f}")
    cost = ", ".join(
        f"{role} {ms:.2f} ({spent.system_ms.get(role, 0):.2f})" for role, ms in spent.cpu_ms.items()
    )
    print(f"  CPU ms a request (in the kernel): {cost}; {spent.busy:.0%} of all cores busy")
    for role, found in result.profiles.items():
        _print_profile(f"{verb}, {role}", found)
    if not result.profiles:
        print(f"  no profile: {profile.REMEDY}")


def _print_profile(title: str, found: Profile) -> None:
    print(
        f"\n  {title}: GIL held {found.gil_held:.0%} of the time; {found.samples} samples, {found.lost} lost"
    )
    _print_functions("by own share of the GIL's time", found.functions)
    ours = [function for function in found.functions if "distfs/" in function.name]
    ours.sort(key=lambda function: function.total, reverse=True)
    _print_functions("distfs's own by all they call", ours)


def _print_functions(title: str, functions: Sequence[Function]) -> None:
    rows = [[title, "own", "all"]]
    rows += [[f.name, f"{f.own:.1%}", f"{f.total:.1%}"] for f in functions[:_SHOWN]]
    table(rows)
