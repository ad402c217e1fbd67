"""An answer's headers that many requests get: put together once, and checked once by who sends them.

To a WSGI host they are a list as any other. Ours takes the text as it is.
"""

from __future__ import annotations

from collections.abc import Mapping


class Base:
    """Never changed. ``checked``: a host has found nothing wrong with it."""

    __slots__ = ("checked", "given", "pairs", "text")

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.pairs = list(headers.items())
        self.text = "\r\n".join(map(": ".join, self.pairs))
        self.given: dict[str, str] = {}  # by that host: what says how the answer is sent
        self.checked = False


class Composed(list[tuple[str, str]]):
    """Those of ``base``, and behind them what is this answer's own."""

    __slots__ = ("base",)

    def __init__(self, base: Base, more: Mapping[str, str]) -> None:
        super().__init__(base.pairs)
        self.base = base
        self += more.items()
