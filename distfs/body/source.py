"""Source: where a file's bytes come from, whoever brings them."""

from __future__ import annotations

from typing import Protocol


class Source(Protocol):
    """Bytes in order, written into memory the caller owns."""

    def readinto(self, view: memoryview) -> int:
        """Fill ``view`` entirely unless the bytes end inside it; the count, 0 at the end.

        Raises BodyCutShort when they end before their declared end, ClientGone when the client reset
        or stalled, TooLarge over a limit, Refused on bad framing.
        """
        ...
