"""A child that must not outlive the process that started it.

The parent gives the child a pipe as standard input and never writes to it. Whatever way the parent ends,
``kill -9`` included, the system closes its end; the child reads the end of file and stops itself as if by
SIGTERM. Nothing to poll, no process id to mistake, the same on every Unix. ``distfs up`` starts all its
children so; the flag is ``--exit-with-parent``.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from distfs.process.threads import start

FLAG = "--exit-with-parent"
FLAG_HELP = "stop when standard input ends, as it does when the process that started this one is gone"

#: Seconds a child has for a clean stop before it is ended.
GRACE = 15.0


def exit_with_parent(grace: float = GRACE, pipe: int | None = None) -> None:
    """Watch ``pipe``, or standard input; at its end SIGTERM this process, and end it ``grace`` seconds later.

    Call it once, from the main thread, after the handlers of SIGTERM are set.
    """
    start(_watch, "parent-watch", grace, standard_input() if pipe is None else pipe)


def standard_input() -> int:
    """Its descriptor."""
    return sys.__stdin__.fileno() if sys.__stdin__ else 0


def _watch(grace: float, fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except OSError:
        pass  # a standard input that cannot be read is a parent that is gone
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(1)
