"""SIGHUP has two meanings: the terminal is gone, or somebody asks to read the configuration anew."""

from __future__ import annotations

import os


class Terminal:
    """The controlling terminal of this process, if it has one (tty(4))."""

    def __init__(self) -> None:
        self._was_there = _is_there()

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
