"""A signal handler may set an event that the interrupted thread is about to wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

from distfs.process.signals import set_soon


def test_an_event_is_set_while_the_interrupted_thread_holds_its_lock() -> None:
    event = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: set_soon(event))
    try:
        with event._cond:  # type: ignore[attr-defined]  # where Event.wait may be interrupted
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert event.wait(30)


SLEEPER = """
import signal, threading
from distfs.process.signals import set_soon, wait_for
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: set_soon(stopping))
def hit():
    print("sleeping", flush=True)
    input()
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    threading.Event().wait()
threading.Thread(target=hit, daemon=True).start()
wait_for(stopping)
print("stopped")
"""


def test_a_signal_that_another_thread_takes_ends_the_wait_too() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "sleeping\n"
        try:
            out, _ = process.communicate("go\n", timeout=30)
        finally:
            process.kill()
    assert out == "stopped\n"
