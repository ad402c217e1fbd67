"""Several processes under one parent, forked here. Those of a service: ``test_service_processes``."""

from __future__ import annotations

import os
import signal
import time

import pytest

from distfs.process import output, siblings
from distfs.process.siblings import Hooks, Sibling, Siblings


def nothing(*given: object) -> None:
    pass


def of_one(**hooks: object) -> Siblings:
    every = {"ready": nothing, "reload": nothing, "hung_up": bool, "stop": nothing, "died": nothing, **hooks}
    return Siblings("test", 1, lambda sibling: 0, Hooks(**every))  # type: ignore[arg-type]


def test_one_that_dies_again_and_again_is_started_less_and_less_often() -> None:
    parent = of_one()
    [place] = parent._places
    pauses = []
    for _ in range(10):
        place.started = time.monotonic()
        before = time.monotonic()
        parent._put_off(place, "died")
        pauses.append(round(place.due - before, 1))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15.0, 15.0]
    place.started = time.monotonic() - siblings.SETTLED_S - 1
    before = time.monotonic()
    parent._put_off(place, "died")
    assert round(place.due - before, 1) == 0.1, "this one had lived"


def test_all_run_until_they_are_told_to_stop_and_the_worst_code_is_the_parents() -> None:
    codes, told, died = [0, 3, 1], os.pipe(), list[int]()

    def work(sibling: Sibling) -> int:
        stopped = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
        sibling.begin()
        while not stopped:
            time.sleep(0.01)
        return codes[sibling.number] if sibling.all_stop else 99

    def ready() -> None:
        os.write(told[1], b"ready")
        os.kill(os.getpid(), signal.SIGTERM)

    hooks = Hooks(ready=ready, reload=nothing, hung_up=bool, stop=nothing, died=died.append)
    assert Siblings("test", 3, work, hooks).run() == 3
    assert os.read(told[0], 10) == b"ready"
    assert sorted(died) == [0, 1, 2]


def test_one_that_dies_before_all_are_ready_ends_them_with_its_code() -> None:
    assert Siblings("test", 3, lambda sibling: 2, Hooks(nothing, nothing, bool, nothing, nothing)).run() == 2


def test_one_that_is_told_to_stop_before_it_can_heed_it_has_stopped_well() -> None:
    def work(sibling: Sibling) -> int:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
        return 1

    assert Siblings("test", 1, work, Hooks(nothing, nothing, bool, nothing, nothing)).run() == 0


def test_no_process_to_be_had_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def fork() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        monkeypatch.undo()
        return os.fork()

    monkeypatch.setattr(os, "fork", fork)

    def work(sibling: Sibling) -> int:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        sibling.begin()
        time.sleep(60)
        return 1

    def ready() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    hooks = Hooks(ready=ready, reload=nothing, hung_up=bool, stop=nothing, died=nothing)
    assert Siblings("test", 1, work, hooks).run() == 0
    assert len(tries) == 3


def test_one_that_fails_by_a_bug_says_which(capfd: pytest.CaptureFixture[str]) -> None:
    def work(sibling: Sibling) -> int:
        raise RuntimeError("a bug")

    assert Siblings("test", 1, work, Hooks(nothing, nothing, bool, nothing, nothing)).run() == output.BUG
    assert "RuntimeError: a bug" in capfd.readouterr().err
