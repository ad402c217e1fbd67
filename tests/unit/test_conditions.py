"""Conditional requests, by the rules and the order of RFC 9110, 13."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from werkzeug.datastructures import Headers

from distfs.routes.conditions import precondition, same_as_before

ETAG = "abc"
MINE, WEAK, OTHER = f'"{ETAG}"', f'W/"{ETAG}"', '"other"'
MODIFIED = datetime(2024, 5, 6, 7, 8, 9, 987654, UTC)
NOW, BEFORE, AFTER = (f"{day} May 2024 07:08:09 GMT" for day in ("Mon, 06", "Sun, 05", "Tue, 07"))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, None),
        ({"If-Match": MINE}, None),
        ({"If-Match": "*"}, None),
        ({"If-Match": f"{OTHER}, {MINE}"}, None),
        ({"If-Match": OTHER}, 412),
        ({"If-Match": WEAK}, 412),
        ({"If-None-Match": MINE}, 304),
        ({"If-None-Match": WEAK}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": OTHER}, None),
        ({"If-Modified-Since": NOW}, 304),
        ({"If-Modified-Since": AFTER}, 304),
        ({"If-Modified-Since": BEFORE}, None),
        ({"If-Modified-Since": "nonsense"}, None),
        ({"If-Unmodified-Since": NOW}, None),
        ({"If-Unmodified-Since": AFTER}, None),
        ({"If-Unmodified-Since": BEFORE}, 412),
        ({"If-Match": MINE, "If-None-Match": MINE}, 304),
        ({"If-Match": MINE, "If-Modified-Since": NOW}, 304),
        ({"If-Match": MINE, "If-Unmodified-Since": BEFORE}, None),
        ({"If-None-Match": OTHER, "If-Modified-Since": NOW}, None),
        ({"If-Unmodified-Since": BEFORE, "If-None-Match": MINE}, 412),
    ],
)
def test_conditions_are_judged_in_order(headers: dict[str, str], status: int | None) -> None:
    assert precondition(Headers(headers), ETAG, MODIFIED) == status


@pytest.mark.parametrize(
    ("condition", "same"),
    [
        (MINE, True),
        (WEAK, False),
        (OTHER, False),
        (NOW, True),
        (AFTER, False),
        (BEFORE, False),
        ("nonsense", False),
        ("", False),
    ],
)
def test_a_range_is_continued_only_of_just_the_same_file(condition: str, same: bool) -> None:
    assert same_as_before(condition, ETAG, MODIFIED) == same
