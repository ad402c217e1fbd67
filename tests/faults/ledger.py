"""What a test makes go wrong, and whether it did. A fault that met nobody shows nothing: it fails the test.

Each tool that injects faults keeps a ledger: what is to happen is ``planned``, what happened is ``met``, and at
the end, or before a new round, ``settle`` raises for what did not. Things of one name are one fault: where any of
three nodes may be the one that is chosen, each is given the fault, and one of them has to meet it.
"""

from __future__ import annotations

import threading
import time

#: For what happens in another thread, which may be late on a busy machine.
_PATIENCE_S = 10.0


class FaultMetNobody(AssertionError):
    """The test shows nothing: what it was to break was not broken, or nobody came by."""


class Ledger:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._met: dict[str, bool] = {}

    def planned(self, fault: str) -> None:
        with self._changed:
            self._met.setdefault(fault, False)

    def met(self, fault: str) -> None:
        """It happened; of no account when it was not planned."""
        with self._changed:
            if fault in self._met:
                self._met[fault] = True
                self._changed.notify_all()

    def settle(self) -> None:
        """Begin anew. Raises FaultMetNobody when something planned has not happened."""
        ends = time.monotonic() + _PATIENCE_S
        with self._changed:
            while not all(self._met.values()) and (left := ends - time.monotonic()) > 0:
                self._changed.wait(left)
            missed = [fault for fault, met in self._met.items() if not met]
            self._met.clear()
        if missed:
            raise FaultMetNobody(f"never happened: {', '.join(missed)}")
