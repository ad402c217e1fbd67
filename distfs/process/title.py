"""What ``ps`` and ``top`` show of this process, when it has become another than it was started as."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

_NAME_MOST = 15  # bytes of a name: TASK_COMM_LEN of Linux, less its NUL
#: Of /proc/self/stat behind the command's name: where the words that Linux started it with begin and end, and its
#: environment (proc(5)).
_ARG_START, _ARG_END, _ENV_START, _ENV_END = range(45, 49)


def show_as(name: str, argv: Sequence[str]) -> None:
    """``name``: for ``top``. ``argv``: for ``ps``; it is written over the words and the environment that Linux
    keeps, as setproctitle(3) does, and cut off where they end. What cannot be shown is not.

    Every variable must have been set anew before: the C library finds what was not in the old place.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        Path("/proc/self/comm").write_bytes(os.fsencode(name)[:_NAME_MOST])
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end, env_start, env_end = (int(field) for field in fields[_ARG_START : _ENV_END + 1])
        if end == env_start:  # else Linux shows no more than the words' place
            end = env_end
        room = end - start
        if start and room > 0:
            text = os.fsencode(" ".join(argv))[: room - 1]
            ctypes.memmove(start, text.ljust(room, b"\0"), room)
