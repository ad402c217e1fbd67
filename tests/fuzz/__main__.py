"""`make fuzz SECONDS=60`: every target for its part of the time, each in a process of its own (``one``).

A find is written to `tests/fuzz/corpus/TARGET/`, and `make test` feeds it from then on. Exit code 1: there was one.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys

from tests.fuzz.one import has_atheris
from tests.fuzz.targets import TARGETS

#: For a target's process to begin, and to end by itself.
GRACE_S = 120


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="this one; repeatable")
    parser.add_argument("--seed", type=int, default=None, help="default: another each time; it is told")
    given = parser.parse_args()
    seed = random.randrange(1, 1 << 31) if given.seed is None else given.seed
    names = given.target or list(TARGETS)
    if not has_atheris():
        print("without coverage: pip install --constraint constraints.txt atheris, for inputs that go deeper")
    print(f"seed {seed}: {len(names)} targets, {given.seconds / len(names):.0f} s each", flush=True)
    found = [name for name in names if not run(name, given.seconds / len(names), seed)]
    print(f"failed: {', '.join(found)}" if found else "nothing was found")
    return 1 if found else 0


def run(name: str, seconds: float, seed: int) -> bool:
    """Whether nothing was found. What the process said is shown if something was."""
    words = [sys.executable, "-m", "tests.fuzz.one", name, str(seconds), str(seed)]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=seconds + GRACE_S
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: HANGS, in code that no signal ends: --target {name} --seed {seed} does it again")
        return False
    said = (done.stdout + done.stderr).splitlines()
    fed = next((line for line in reversed(said) if line.startswith("fed ")), "ended early")
    print(f"{name}: {fed}{' FAILED' if done.returncode else ''}", flush=True)
    if done.returncode:
        print("\n".join(said[-60:]))
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
