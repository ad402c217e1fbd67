"""Accept, as RFC 9110, 12.5.1 has it, and who gets JSON by it."""

from __future__ import annotations

import pytest

from distfs.headers import accept
from distfs.problem import JSON, asks_for, explained


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("", {}),
        ("*/*", {"*/*": 1.0}),
        ("Text/HTML, text/*;q=0.3 ,*/* ; q=0.1", {"text/html": 1.0, "text/*": 0.3, "*/*": 0.1}),
        (",, a/b ,", {"a/b": 1.0}),
        ("a/b;Q=0.5", {"a/b": 0.5}),
        ('a/b;q="0.5"', {"a/b": 0.5}),
        ("a/b;q=0", {"a/b": 0.0}),
        ("a/b;q=0.", {"a/b": 0.0}),
        ("a/b;q=1.000", {"a/b": 1.0}),
        ("a/b;q=0.8999999761581421", {"a/b": 0.8999999}),
        ("a/b;q=0.5, a/b;q=0.7, A/B;q=0.1", {"a/b": 0.7}),
        ("a/b;charset=utf-8;q=0.5", {"a/b": 0.5}),
        ('a/b;x="c/d, e/f;q=0";q=0.5', {"a/b": 0.5}),
    ],
)
def test_each_range_has_its_weight(text: str, weights: dict[str, float]) -> None:
    assert accept.read(text) == weights


@pytest.mark.parametrize(
    "bad",
    [
        "a",
        "a/",
        "/b",
        "*",
        "*/b",
        "a/b/c",
        "a b/c",
        '"a/b"',
        "a/b;q",
        "a/b;q=",
        "a/b;q=.5",
        "a/b;q=2",
        "a/b;q=1.1",
        "a/b;q=-1",
        "a/b;q=+1",
        "a/b;q=1e0",
        "a/b;q=nan",
        "a/b;q=inf",
        "a/b;q=٠",
        "a/b;q =1",
        "a/b;q=1;q=0.5",
        "a/b q=1",
    ],
)
def test_what_is_no_range_does_not_count_and_the_others_do(bad: str) -> None:
    assert accept.read(f"c/d, {bad} , e/f;q=0.5") == {"c/d": 1.0, "e/f": 0.5}


@pytest.mark.parametrize(
    ("text", "is_json"),
    [
        ("", False),
        ("*/*", False),
        ("application/*", False),
        ("application/json", True),
        ("APPLICATION/JSON", True),
        ("application/json; charset=utf-8", True),
        ("application/json, */*", True),
        ("application/json, text/plain, */*", True),
        ("application/json;q=0.5, */*;q=0.1", True),
        ("application/json;q=0.5, text/*", False),
        ("application/json;q=0.5, text/plain;q=0.6", False),
        ("application/json;q=0.5, text/plain;q=0.1, */*", True),
        ("application/json;q=0.1, text/*;q=0, */*", True),
        ("application/json;q=0", False),
        ("application/json;q=2", False),
        ("application/jsonp", False),
        ('text/html;x="application/json"', False),
        ('text/html;x=", application/json', False),
    ],
)
def test_json_is_for_who_names_it_and_likes_text_no_better(text: str, is_json: bool) -> None:
    assert asks_for(text, JSON) == is_json
    assert explained(text, 400, "no", "id")[1].startswith("{") == is_json
