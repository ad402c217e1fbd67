"""What a signal handler may do to an event, and how to wait for it.

A handler runs in the main thread, between any two of its steps. Had it just taken the event's own lock, to
wait, ``event.set()`` in the handler would wait for that lock for ever: a process that ignores SIGTERM.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable

from distfs.errors import Busy
from distfs.process.terminal import Terminal
from distfs.process.threads import start

_LOOK_EVERY_S = 0.5


def set_soon(event: threading.Event) -> None:
    """Set ``event`` from a thread of its own, at once. Takes no lock of Python's: safe in a signal handler."""
    _thread.start_new_thread(event.set, ())


def on_stop(act: Callable[[], object]) -> None:
    """Have ``act`` called at every SIGTERM and SIGINT. Call this in the main thread; ``act`` takes no lock."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: act())


def on_reload(
    act: Callable[[], object], hung_up: Callable[[], object], put_off: Callable[[Busy], object]
) -> None:
    """Have ``act`` called in a thread at every SIGHUP, except when the terminal is gone: then ``hung_up``, at once.

    ``put_off`` hears of the one for which there is no thread. Call this in the main thread.
    """
    terminal = Terminal()

    def handle(*_: object) -> None:
        if terminal.hung_up:
            hung_up()
            return
        try:  # not here: the thread that was interrupted may hold any lock
            start(act, "reload")
        except Busy as e:
            put_off(e)

    signal.signal(signal.SIGHUP, handle)


def say_stop(stopping: threading.Event, hurry: threading.Event) -> None:
    """Set ``stopping`` the first time, and ``hurry`` after that. Safe in a signal handler."""
    if stopping.is_set():
        set_soon(hurry)
    set_soon(stopping)


def wait_for(event: threading.Event) -> None:
    """Wait, in the main thread, for an event that a signal handler sets.

    The interpreter runs handlers in the main thread alone. A signal that the system gives to another thread, or
    that comes just before the main thread falls asleep, does not wake it: asleep without a limit, it would ignore
    SIGTERM for ever.
    """
    while not event.wait(_LOOK_EVERY_S):
        pass
