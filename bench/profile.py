"""Where a running Python process spends the GIL's time, seen from outside by py-spy.

Of py-spy's ways of looking, this is the one to trust with many threads on few cores. Stopping the process for
each sample slows it down by half, and all threads that seem active include those that only wait. Reading who
holds the GIL without stopping changes the request rate by a few percent, and the GIL is what the threads of one
process compete for. System calls run without it: what they cost is the CPU time in the kernel.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from distfs.errors import Unavailable

REMEDY = "py-spy is not installed: pip install py-spy"
_RATE = 500  # looks a second
_KEPT = 150  # functions
_PATIENCE_S = 30


@dataclass(frozen=True, slots=True)
class Function:
    """One function's share of the samples in which a thread held the GIL."""

    name: str  # 'function (file:line)'; C code counts for the Python function that called it
    own: float
    total: float  # with everything it called


@dataclass(frozen=True, slots=True)
class Profile:
    """What py-spy saw of one process."""

    samples: int
    lost: int  # looks at a stack that changed under py-spy's eyes
    gil_held: float  # share of the time; near 1 the GIL is what limits the process
    functions: list[Function]  # by own share, the largest first


def record(pid: int, seconds: int, output: Path) -> Profile | None:
    """Watch ``pid`` for ``seconds``. None: py-spy is not there. Raises Unavailable when it fails."""
    beside_python = Path(sys.executable).with_name("py-spy")
    py_spy = str(beside_python) if beside_python.exists() else shutil.which("py-spy")
    if not py_spy:
        return None
    how = ["--gil", "--nonblocking", "--rate", str(_RATE), "--duration", str(seconds)]
    form = ["--format", "raw", "--function", "--output", str(output)]
    done = subprocess.run(
        [py_spy, "record", "--pid", str(pid), *how, *form],
        capture_output=True,
        text=True,
        timeout=seconds + _PATIENCE_S,
        check=False,
    )
    if done.returncode:
        # Without root, reading the memory of a process that is not our own child is often forbidden.
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Unavailable(f"py-spy failed: {why}; try as root")
    errors = re.search(r"Errors: (\d+)", done.stdout + done.stderr)
    return parse(output.read_text(), int(errors[1]) if errors else 0, _RATE * seconds)


def parse(raw: str, lost: int, looks: int) -> Profile:
    """Lines ``outer;...;inner COUNT`` -> the shares of each function, out of ``looks`` in all."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, number = line.rpartition(" ")
        frames, count = stack.split(";"), int(number)
        own[frames[-1]] += count
        total.update(dict.fromkeys(frames, count))
    samples = own.total()
    functions = [Function(name, own[name] / samples, count / samples) for name, count in total.items()]
    functions.sort(key=lambda function: (function.own, function.total), reverse=True)
    return Profile(samples, lost, (samples + lost) / looks, functions[:_KEPT])
