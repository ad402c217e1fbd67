"""SIGHUP has two meanings: the terminal is gone, or somebody asks to read the configuration anew."""

from __future__ import annotations

import os
import signal


class Terminal:
    """The controlling terminal of this process, if it has one (tty(4)) and is not to outlive it, as under nohup."""

    def __init__(self) -> None:
        """Before the process handles SIGHUP: who started it may have had it ignored."""
        self._was_there = _is_there() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN

    @property
    def hung_up(self) -> bool:
        """It was there when this object was made and is not any more. Safe in a signal handler."""
        return self._was_there and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
