"""What a test makes go wrong, and whether it did. A fault that met nobody shows nothing: it fails the test.

Each tool that injects faults keeps a ledger: what is to happen is ``planned``, what happened is ``met``, and at
the end, or before a new round, ``settle`` raises for what did not. Things of one name are one fault: where any of
three nodes may be the one that is chosen, each is given the fault, and one of them has to meet it.

What has no end of its own within a test, as a source of bytes or a function in another's place, is kept in
``OF_THE_TEST``, which ``conftest.py`` settles when the test has passed.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable

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

    def forget(self) -> None:
        """Begin anew without looking back."""
        with self._changed:
            self._met.clear()


OF_THE_TEST = Ledger()
_numbers = itertools.count(1)


def of_the_test(fault: str) -> Callable[[], None]:
    """Plan a fault like no other; -> what is called when it has happened."""
    named = f"{fault} (no. {next(_numbers)})"
    OF_THE_TEST.planned(named)
    return functools.partial(OF_THE_TEST.met, named)
