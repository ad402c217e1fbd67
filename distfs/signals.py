"""What a signal handler may do to an event.

A handler runs in the main thread, between any two of its steps. Had it just taken the event's own lock, to
wait, ``event.set()`` in the handler would wait for that lock for ever: a process that ignores SIGTERM.
"""

from __future__ import annotations

import _thread
import threading


def set_soon(event: threading.Event) -> None:
    """Set ``event`` from a thread of its own, at once. Takes no lock of Python's: safe in a signal handler."""
    _thread.start_new_thread(event.set, ())
