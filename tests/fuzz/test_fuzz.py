"""The bounded part: what was found once, and some hundred inputs for each target, the same ones each time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings

from distfs.errors import DistfsError, Refused
from tests.fuzz import guard, one
from tests.fuzz.inputs import kept, strategy
from tests.fuzz.targets import TARGETS

KEPT = [(name, path) for name in TARGETS for path in kept(name)]


@pytest.mark.parametrize(("name", "path"), KEPT, ids=[f"{name}-{path.name}" for name, path in KEPT])
def test_what_was_found_once_is_right_now(name: str, path: Path) -> None:
    guard.feed_measured(TARGETS[name].target, path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name: str) -> None:
    for seed in TARGETS[name].seeds:
        guard.feed_measured(TARGETS[name].target, seed)


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_bytes_are_told_so(name: str) -> None:
    fed = TARGETS[name]

    @settings(max_examples=100, derandomize=True, database=None)
    @given(strategy(fed))
    def feed(data: bytes) -> None:
        guard.feed(fed.target, data)

    feed()


def test_corpora_are_of_targets_that_there_are() -> None:
    folders = {path.name for path in (Path(__file__).parent / "corpus").iterdir() if path.is_dir()}
    assert folders <= set(TARGETS)


# --- what fails an input -----------------------------------------------------------------------------


def busy(data: bytes) -> None:
    until = time.thread_time() + guard.MOST_SECONDS * 1.1
    while time.thread_time() < until:
        pass


def endless(data: bytes) -> None:
    while True:
        pass


def hungry(data: bytes) -> None:
    bytearray(guard.MOST_BYTES + 1000)


def unclassified(data: bytes) -> None:
    raise DistfsError("a bug of ours")


def broken(data: bytes) -> None:
    raise KeyError("nobody thought of it")


@pytest.mark.parametrize(
    ("target", "error"),
    [
        (busy, guard.TooLong),
        (hungry, guard.TooMuch),
        (unclassified, AssertionError),
        (broken, KeyError),
    ],
)
def test_the_guard_sees_it(target: guard.Target, error: type[Exception]) -> None:
    with pytest.raises(error):
        guard.feed_measured(target, b"")


def test_what_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "ENDLESS_SECONDS", 0.1)
    with pytest.raises(guard.TooLong):
        guard.feed(endless, b"")


def test_an_error_of_a_kind_is_what_hostile_bytes_are_for() -> None:
    def refuses(data: bytes) -> None:
        raise Refused("no")

    guard.feed_measured(refuses, b"")


@pytest.mark.parametrize(("broken", "code"), [(False, 0), (True, one.FOUND)])
def test_without_atheris_inputs_are_mutated_and_a_find_is_kept(
    broken: bool, code: int, tmp_path: Path
) -> None:
    """In a process of its own, as `make fuzz` does it."""
    lines = [
        "from pathlib import Path",
        "from tests.fuzz import inputs, one, targets",
        "one.has_atheris = lambda: False",
        f"inputs.CORPUS = Path({str(tmp_path)!r})",
        "def break_down(data): raise KeyError(1)",
        "fed = targets.TARGETS['metadb_url']",
        f"if {broken}: targets.TARGETS['metadb_url'] = targets.Fed(break_down, fed.seeds, fed.words)",
        "one.main('metadb_url', 0.1, 1)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1].startswith("fed ")
    assert ("KeyError" in done.stderr) is broken
    assert len(list((tmp_path).rglob("found-*"))) == broken
