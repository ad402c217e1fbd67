"""A signal handler may set an event that the interrupted thread is about to wait for."""

from __future__ import annotations

import os
import signal
import threading

from distfs.signals import set_soon


def test_an_event_is_set_while_the_interrupted_thread_holds_its_lock() -> None:
    event = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: set_soon(event))
    try:
        with event._cond:  # type: ignore[attr-defined]  # where Event.wait may be interrupted
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert event.wait(30)
