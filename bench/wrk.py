"""wrk, the client that small requests are measured with: one thread, since the cores are for what is measured."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distfs.errors import ConfigError, TooSlow, Unavailable

SCRIPT = Path(__file__).with_name("wrk.lua")
_PATIENCE_S = 30


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw in one run."""

    answers: int
    seconds: float
    refused: int  # answers of 400 and up
    broken: int  # connections refused or cut, and answers that took longer than 2 s
    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def rate(self) -> float:
        """Requests a second that were answered well."""
        return (self.answers - self.refused) / self.seconds

    @property
    def failed(self) -> int:
        return self.refused + self.broken


def needed() -> None:
    """Raises ConfigError when wrk is missing."""
    if not shutil.which("wrk"):
        raise ConfigError("wrk is not installed; on Debian or Ubuntu: apt-get install wrk")


def load(url: str, connections: int, seconds: int, what: Sequence[str]) -> Load:
    """``what``: the arguments of ``wrk.lua``. Raises Unavailable, TooSlow."""
    with running(url, connections, seconds, what) as wrk:
        output, _ = wrk.communicate(timeout=seconds + _PATIENCE_S)
    try:
        return Load(**json.loads(output.splitlines()[-1]))
    except (IndexError, ValueError) as e:
        raise Unavailable(f"wrk gave no figures: {output.strip()}") from e


@contextmanager
def running(url: str, connections: int, seconds: int, what: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """wrk at work for ``seconds``; over when the block is left."""
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    with subprocess.Popen(
        [*command, "--script", str(SCRIPT), url, "--", *what],
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
