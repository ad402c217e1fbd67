"""How long something takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def timed(act: Callable[[], Result]) -> tuple[Result, float]:
    """-> what it gives, and the seconds it took."""
    began = time.perf_counter()
    result = act()
    return result, time.perf_counter() - began


def rate(size: int, transfer: Callable[[], object]) -> float:
    """MB/s of a transfer of ``size`` bytes, from its start to its end."""
    _, seconds = timed(transfer)
    return size / 1e6 / seconds
