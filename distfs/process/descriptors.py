"""How many files and sockets this process may have open, and what to do and say when it may not have one more."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import time
from collections.abc import Callable

#: Every connection is one, a large upload on it one or two more. More is of no use here.
WANTED = 65536
#: So long an accept loop leaves new connections in the backlog when it can have no socket for one.
ACCEPT_PAUSE_S = 0.5

#: What accept(2) fails with for want of something that others give back.
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NEWS_AGAIN_S = 60.0


def raise_limit() -> int:
    """As many as the system lets this process have, up to WANTED; -> how many. The usual 1024 are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return soft
    with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def used_up(error: OSError) -> bool:
    """Whether there was no descriptor to be had: nothing else is wrong with what was asked for."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def in_words(error: OSError) -> str:
    """What the system says; of descriptors that are used up, also what an operator can do."""
    if error.errno == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"this process may have no more than {most} files and sockets open, and has: raise `ulimit -Hn` "
            "(systemd: LimitNOFILE=)"
        )
    if error.errno == errno.ENFILE:
        return "this machine has as many files open as it may: raise fs.file-max"
    return error.strerror or str(error)


def shortage() -> OSError | None:
    """What opening a file fails with just now, for want of a descriptor; None: there are some.

    For those who are not told: the system's resolver calls a name unknown when it cannot open its files.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as e:
        if used_up(e):
            return e
    return None


class AcceptTrouble:
    """What keeps an accept loop from spinning: the socket stays ready for as long as accept(2) fails."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._last = float("-inf")

    def pauses(self, error: OSError) -> bool:
        """Whether to leave connections in the backlog for ACCEPT_PAUSE_S. Said once, until it has long been well."""
        if error.errno not in _SCARCE:
            return False
        now = self._clock()
        if now - self._last > _NEWS_AGAIN_S:
            self._log.error("new connections have to wait, open ones are served: %s", in_words(error))
        self._last = now
        return True
