"""A port that several processes accept from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shared:
    """Other processes accept from the listening socket, too."""

    others_accept: Callable[[], bool]  # while this process stops
    others_work: Callable[[bool], bool]  # whether they do, told whether this process does
