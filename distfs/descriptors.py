"""How many files and sockets this process may have open."""

from __future__ import annotations

import contextlib
import resource

#: Every connection is one, a large upload on it one or two more. More is of no use here.
WANTED = 65536


def raise_limit() -> int:
    """As many as the system lets this process have, up to WANTED; -> how many. The usual 1024 are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return soft
    with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
