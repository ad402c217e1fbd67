"""One deadline object a request: made at its edge, passed to everything below that can wait, and cancelled there."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator

from distfs.errors import Cancelled, DistfsError, TooSlow


def _nothing() -> None:
    pass


class Scope:
    """What is cancelled together. ``reason``: why, once it is; what the request comes to, where one says so."""

    def __init__(self) -> None:
        self.reason: str | DistfsError | None = None
        self._lock = threading.Lock()
        self._watchers: dict[int, Callable[[], object]] = {}
        self._serial = itertools.count()

    def cancel(self, reason: str | DistfsError) -> None:
        """From any thread, once or more often: the first reason stays."""
        with self._lock:
            if self.reason is None:
                self.reason = reason
            # Under the lock: who has unwatched is never called afterwards.
            while self._watchers:
                try:
                    _, wake = self._watchers.popitem()
                except KeyError:  # it was the last, and has just unwatched
                    break
                wake()

    def watch(self, wake: Callable[[], object]) -> Callable[[], None]:
        """Nearly all watch and unwatch what is never cancelled: they need the lock only when it is."""
        watchers, number = self._watchers, next(self._serial)
        watchers[number] = wake
        if self.reason is not None:  # perhaps since before, and nobody would look again
            with self._lock:
                mine = watchers.pop(number, None)
            if mine is not None:
                wake()

        def unwatch() -> None:
            watchers.pop(number, None)
            if self.reason is not None:
                with self._lock:  # it may be called just now
                    pass

        return unwatch


class Deadline:
    """A point on a monotonic clock. Passed down, never a bare timeout: what is left shrinks by itself."""

    __slots__ = ("_clock", "_scope", "expires_at", "seconds")

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        scope: Scope | None = None,
        now: float | None = None,
    ) -> None:
        """``scope``: what else it is cancelled with; None: by nobody. ``now``: by the clock, if that was asked."""
        self._clock = clock
        self._scope = scope
        self.seconds = seconds
        self.expires_at = (clock() if now is None else now) + seconds

    def remaining(self, phase: str = "request") -> float:
        """Seconds left, always positive. Raises TooSlow, naming ``phase``, when none are; Cancelled."""
        if self._scope is not None and self._scope.reason is not None:
            self.check_cancelled()
        left = self.expires_at - self._clock()
        if left <= 0:
            raise TooSlow(f"{phase} passed its deadline of {self.seconds:.1f} s")
        return left

    def bound(self, seconds: float, phase: str = "request") -> float:
        """The smaller of ``seconds`` and what is left. Raises TooSlow when nothing is."""
        return min(seconds, self.remaining(phase))

    def sooner(self, seconds: float) -> Deadline:
        """A child that ends after ``seconds`` or with this one, whichever is first; cancelled with it, too."""
        now = self._clock()
        left = self.expires_at - now
        left = min(left, seconds)
        return Deadline(left if left > 0 else 0.0, self._clock, self._scope, now)

    def uncancelled(self) -> Deadline:
        """The same time, for what must not be given up in its middle: nobody cancels it."""
        return Deadline(max(0.0, self.expires_at - self._clock()), self._clock)

    # --- cancelling ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def scope(self) -> Iterator[Deadline]:
        """A child of the same length, for work that is given up together: by its ``cancel`` or this one's."""
        scope = Scope()
        unwatch = self.watch(lambda: scope.cancel("the request was given up"))
        try:
            yield Deadline(self.expires_at - self._clock(), self._clock, scope)
        finally:
            unwatch()

    def cancel(self, reason: str) -> None:
        """Wake whoever waits under this scope: from now on all that asks for time raises Cancelled."""
        if self._scope is not None:
            self._scope.cancel(reason)

    def watch(self, wake: Callable[[], object]) -> Callable[[], None]:
        """Have ``wake`` called, once, when this is cancelled; at once if it is already. -> call it to unwatch.

        ``wake`` must neither wait nor come back here: it ends a wait, by an event or by shutting a socket down. A
        lock that it takes for that must not be held by who watches or unwatches.
        """
        return self._scope.watch(wake) if self._scope is not None else _nothing

    def pause(self, seconds: float, phase: str) -> None:
        """Wait so long. Raises Cancelled as soon as this is; TooSlow when it ends first."""
        woken = threading.Event()
        unwatch = self.watch(woken.set)
        try:
            woken.wait(self.bound(seconds, phase))
        finally:
            unwatch()
        self.remaining(phase)

    @contextlib.contextmanager
    def waking(self, condition: threading.Condition) -> Iterator[None]:
        """Within, cancelling this wakes all who wait for ``condition``. Enter and leave it without holding that."""

        def wake() -> None:
            with condition:
                condition.notify_all()

        unwatch = self.watch(wake)
        try:
            yield
        finally:
            unwatch()

    @property
    def cancelled(self) -> bool:
        return self._scope is not None and self._scope.reason is not None

    def check_cancelled(self) -> None:
        """Raises Cancelled when it is."""
        if self._scope is not None and self._scope.reason is not None:
            raise Cancelled(str(self._scope.reason))
