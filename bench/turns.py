"""What something costs: the same transfer without it and with it, in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Overhead:
    """Seconds of one transfer of ``size`` bytes, without what is measured and with it, pair by pair."""

    way: str
    size: int
    off_s: list[float] = field(default_factory=list)
    on_s: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Time with it to time without."""
        return [on / off for on, off in zip(self.on_s, self.off_s, strict=True)]

    def measure(self, pairs: int, seconds: Callable[[bool], float]) -> None:
        """``seconds``: does the transfer, with what is measured or without, and says how long it took."""
        for number in range(pairs):
            # Which goes first alternates: what the one leaves to the other's disk is shared out.
            for on in (False, True) if number % 2 else (True, False):
                (self.on_s if on else self.off_s).append(seconds(on))
