"""Commands that wait for a worker: how often they look."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from distfs.commands import waiting
from distfs.commands.operator import Operator


@pytest.mark.parametrize(("counts", "looks"), [([0], 1), ([2, 1, 0], 3)])
def test_what_is_left_is_counted_once_a_look(counts: list[int], looks: int) -> None:
    """A count goes through all slices, and takes long where there are many."""
    left = iter(counts)
    asked = []

    def count() -> int:
        asked.append(1)
        return next(left)

    nobody = cast(Operator, cast(Any, SimpleNamespace()))
    assert waiting.wait_until_none(nobody, "repair", "repairing", count, 0.01) == ""
    assert len(asked) == looks
