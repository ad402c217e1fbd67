"""SIGHUP to a part: read anew, in a thread of its own, or put off."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from distfs.errors import Busy
from distfs.process.signals import on_reload
from tests.contract.litter import eventually


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_what_is_read_anew_is_read_in_another_thread() -> None:
    read: list[threading.Thread] = []
    on_reload(
        lambda: read.append(threading.current_thread()),
        lambda: pytest.fail("hung up"),
        lambda e: pytest.fail(str(e)),
    )
    os.kill(os.getpid(), signal.SIGHUP)
    eventually(lambda: bool(read), "it is read")
    assert read[0] is not threading.main_thread()


def test_without_a_thread_to_be_had_it_is_put_off_and_the_process_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    heard: list[Busy] = []
    on_reload(lambda: pytest.fail("read"), lambda: pytest.fail("hung up"), heard.append)
    monkeypatch.setattr(threading.Thread, "start", none_left)
    os.kill(os.getpid(), signal.SIGHUP)
    assert [type(each) for each in heard] == [Busy]
