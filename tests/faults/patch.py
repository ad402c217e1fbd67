"""``monkeypatch`` whose functions must be called: what is put in another's place and never asked breaks nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest

from tests.faults.ledger import OF_THE_TEST


def unplanned(stand_in: Callable[..., Any]) -> Callable[..., Any]:
    """For one that is no fault: it shows that nobody calls it, or a test is built on it, called or not."""
    return _Seen(stand_in, lambda: None)


class _Seen:
    """Something to be called that is no function, and so is bound to nothing."""

    def __init__(self, stand_in: Callable[..., Any], met: Callable[[], None]) -> None:
        self._stand_in, self._met = stand_in, met

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._met()
        return self._stand_in(*args, **kwargs)


def _seen(name: str, stand_in: Any) -> Any:
    """``stand_in``, with a note when it is called. Values and classes stay as they are: nobody tells who reads them.

    Those of one name by one function are one fault: of three nodes that get it, one has to be asked.
    """
    if isinstance(stand_in, property):
        return property(_seen(name, stand_in.fget))
    if isinstance(stand_in, type | _Seen) or not callable(stand_in):
        return stand_in
    called = getattr(stand_in, "__qualname__", type(stand_in).__qualname__)
    fault = f"a call of {called} as {name}"
    OF_THE_TEST.planned(fault)
    met = functools.partial(OF_THE_TEST.met, fault)
    if not isinstance(stand_in, FunctionType):
        return _Seen(stand_in, met)

    @functools.wraps(stand_in)
    def seen(*args: Any, **kwargs: Any) -> Any:
        met()
        return stand_in(*args, **kwargs)

    return seen


class Patch(pytest.MonkeyPatch):  # type: ignore[misc]  # final, for want of a need
    """A MonkeyPatch that plans what it sets."""

    def setattr(
        self, target: Any, *rest: Any, raising: bool = True
    ) -> None:  # (object, name, value), (path, value)
        *before, stand_in = target, *rest
        seen = _seen(before[-1], stand_in)
        super().setattr(*before, seen, raising=raising)  # type: ignore[call-overload]
