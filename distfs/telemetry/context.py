"""For which request a thread works: an id that follows the request, into other threads too."""

from __future__ import annotations

import contextvars
import random
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

NO_REQUEST = "-"
_request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default=NO_REQUEST)
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def current_request_id() -> str:
    """The id of the request this thread works for; ``-`` for none."""
    return _request_id.get()


def enter_request(wanted: str = "") -> str:
    """From here on this thread works for a request: the client's id if it is sane, else a new one."""
    # An id is no secret; random's generator takes no system call, and is seeded anew in a forked process.
    request_id = wanted if wanted and _SANE_ID.fullmatch(wanted) else f"{random.getrandbits(64):016x}"
    _request_id.set(request_id)
    return request_id


def leave_request() -> None:
    """This thread works for no request any more."""
    _request_id.set(NO_REQUEST)


def in_context(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` as one call in another thread should run it: with this thread's request id.

    Each result may be called once at a time: ``executor.submit(in_context(send), block)``.
    """
    context = contextvars.copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.run(function, *args, **kwargs)

    return run
