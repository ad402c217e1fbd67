"""Small files: how many 4 KiB forms and downloads a second, and where their time goes."""

from __future__ import annotations

import http.client
import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import disk, processes, profile
from bench.processes import Process
from bench.profile import Function, Profile
from bench.report import Options, table
from bench.targets import Distfs, workspace
from distfs.errors import ConfigError, Corrupt, TooSlow, Unavailable

SIZE = 4096
FILES = 500  # what GET asks for in turn
SCRIPT = Path(__file__).with_name("small.lua")
_BOUNDARY = "distfs-bench-fill"
COPIES = 2
_CEILING_S, _WARM_UP_S = 2, 2
_PATIENCE_S = 30
_SHOWN = 14  # functions of a profile's table; the JSON has more


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw in one run, and what the run cost."""

    requests: int
    seconds: float
    failed: int  # connections refused or cut, statuses of 400 and up, timeouts
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_ms: dict[str, float]  # CPU milliseconds a request, by role
    system_ms: dict[str, float]  # the part of it inside the kernel
    busy: float  # share of all cores that these processes kept busy

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


@dataclass(frozen=True, slots=True)
class Result:
    """One verb: its figures, and the profiles taken in a later run, so that they disturb no figure."""

    load: Load
    profiles: dict[str, Profile]  # by process


def run(options: Options, cleanup: ExitStack) -> dict[str, Result | float]:
    """PUT (a form of one file), then GET. Raises ConfigError when wrk is missing, Corrupt on a wrong byte."""
    if not shutil.which("wrk"):
        raise ConfigError("wrk is not installed; on Debian or Ubuntu: apt-get install wrk")
    folder = cleanup.enter_context(workspace(options.work))
    distfs = cleanup.enter_context(Distfs.running(folder))
    paths = folder / "paths"
    paths.write_text("".join(f"{path}\n" for path in _fill(distfs)))
    ceiling = disk.durable_files(folder, options.connections, _CEILING_S) / COPIES
    print(f"\nthis disk, bare: {ceiling:.0f} files of 4 KiB a second made durable in {COPIES} copies")
    results: dict[str, Result | float] = {"durable files a second": ceiling}
    for verb, arguments in {"PUT": ["put", str(SIZE)], "GET": ["get", str(paths)]}.items():
        with _wrk(distfs, options, _WARM_UP_S, arguments):
            pass
        load = _measure(distfs, options, arguments)
        result = results[verb] = Result(load, _profiles(distfs, options, arguments, folder))
        _print(verb, options, result)
    return results


def _fill(distfs: Distfs) -> list[str]:
    """Store files and read each back once -> their download paths. wrk itself never looks at a body."""
    source = random.Random(SIZE)
    stored = {}
    connection = http.client.HTTPConnection("127.0.0.1", distfs.port, timeout=_PATIENCE_S)
    try:
        for _ in range(FILES):
            content = source.randbytes(SIZE)
            answer = _exchange(connection, "POST", "/upload", _form(content)).decode().strip()
            stored[f"/download/{answer}"] = content
        for path, content in stored.items():
            if _exchange(connection, "GET", path) != content:
                raise Corrupt(f"{path} did not come back as it was sent")
    finally:
        connection.close()
    return list(stored)


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
) -> bytes:
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"} if body is not None else {}
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as e:
        raise Unavailable(f"{method} {path}: {e!r}") from e
    if response.status >= http.HTTPStatus.BAD_REQUEST:
        raise Unavailable(f"{method} {path}: {response.status} {answer.decode(errors='replace').strip()}")
    return answer


def _form(content: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="small.bin"\r\n\r\n'
    return head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()


@contextmanager
def _wrk(
    distfs: Distfs, options: Options, seconds: int, arguments: list[str]
) -> Iterator[subprocess.Popen[str]]:
    """wrk at work for ``seconds``; over when the block is left. One thread: the cores are for distfs."""
    command = [
        "wrk",
        "--threads",
        "1",
        "--connections",
        str(options.connections),
        "--duration",
        f"{seconds}s",
    ]
    with subprocess.Popen(
        [*command, "--script", str(SCRIPT), distfs.form_url, "--", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as wrk:
        try:
            yield wrk
            wrk.wait(seconds + _PATIENCE_S)
        except subprocess.TimeoutExpired as e:
            raise TooSlow(f"wrk did not end {_PATIENCE_S} s after its time") from e
        finally:
            wrk.kill()  # nothing to an ended one


def _measure(distfs: Distfs, options: Options, arguments: list[str]) -> Load:
    before, system_before = _cpu(distfs)
    used_before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with _wrk(distfs, options, options.seconds, arguments) as wrk:
        output, _ = wrk.communicate()
    elapsed = time.perf_counter() - start
    after, system_after = _cpu(distfs)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    after["wrk"], before["wrk"] = (u.ru_utime + u.ru_stime for u in (used, used_before))
    try:
        figures = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError) as e:
        raise Unavailable(f"wrk gave no figures: {output.strip()}") from e
    requests = max(1, figures["requests"])
    cpu_ms = _each(after, before, requests)
    system_ms = _each(system_after, system_before, requests)
    busy = sum(cpu_ms.values()) / 1e3 * requests / (elapsed * len(os.sched_getaffinity(0)))
    return Load(**figures, cpu_ms=cpu_ms, system_ms=system_ms, busy=busy)


def _cpu(distfs: Distfs) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds so far by role: all, and those in the kernel."""
    everyone = distfs.processes()
    return processes.cpu_seconds(everyone), processes.system_seconds(everyone)


def _each(after: dict[str, float], before: dict[str, float], requests: int) -> dict[str, float]:
    """Milliseconds a request."""
    return {role: (seconds - before.get(role, 0.0)) * 1e3 / requests for role, seconds in after.items()}


def _profiles(distfs: Distfs, options: Options, arguments: list[str], folder: Path) -> dict[str, Profile]:
    """The service and one node, each under the same load again; empty when py-spy is missing."""
    chosen: dict[str, Process] = {}
    for process in distfs.processes():
        if process.role in ("service", "node"):
            chosen.setdefault(process.role, process)
    profiles = {}
    for role, process in chosen.items():
        with _wrk(distfs, options, options.seconds + 2, arguments):
            found = profile.record(process.pid, options.seconds, folder / "profile")
        if found is not None:
            profiles[role] = found
    return profiles


def _print(verb: str, options: Options, result: Result) -> None:
    load = result.load
    print(f"\n{verb} of {SIZE // 1024} KiB, {options.connections} connections, {load.seconds:.0f} s")
    print(f"  {load.rate:.0f} requests/s, {load.failed} failed")
    print(f"  latency ms: median {load.p50_ms:.1f}, 99 % {load.p99_ms:.1f}, longest {load.max_ms:.1f}")
    cost = ", ".join(
        f"{role} {ms:.2f} ({load.system_ms.get(role, 0):.2f})" for role, ms in load.cpu_ms.items()
    )
    print(f"  CPU ms a request (in the kernel): {cost}; {load.busy:.0%} of all cores busy")
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
