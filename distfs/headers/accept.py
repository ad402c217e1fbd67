"""Accept (RFC 9110, 12.5.1): which of two types a client would rather have."""

from __future__ import annotations

import re

from distfs.headers import fields

#: RFC 9110 has three digits at most; some clients write a float as their language prints it.
_WEIGHT = re.compile(r"0(?:\.[0-9]*+)?|1(?:\.0*+)?")


def read(text: str) -> dict[str, float]:
    """The weight of each media range, in lower case; an element that is none does not count.

    Parameters do not count either: clients name a charset, and nothing here comes in two.
    """
    found: dict[str, float] = {}
    for element in fields.elements(text):
        kind, *rest = fields.split(element, ";")
        parameters = fields.parameters(rest)
        if not _is_range(kind) or parameters is None:
            continue
        weight = dict(parameters).get("q", "1")
        if _WEIGHT.fullmatch(weight):
            found[kind.lower()] = max(found.get(kind.lower(), 0.0), float(weight[:9]))
    return found


def names(text: str, kind: str, instead_of: str) -> bool:
    """Whether ``kind`` itself is named, and liked no less than the other; ``*/*`` names nothing."""
    if not text:
        return False
    weights = read(text)
    weight = weights.get(kind, 0.0)
    return weight > 0 and weight >= _weight(weights, instead_of)


def likes_coding(text: str, coding: str) -> bool:
    """Whether Accept-Encoding (12.5.3) names ``coding``, and likes it no less than what is not encoded."""
    weights: dict[str, float] = {}
    for element in fields.elements(text):
        name, *rest = fields.split(element, ";")
        parameters = fields.parameters(rest)
        weight = dict(parameters or ()).get("q", "1")
        if fields.is_token(name) and parameters is not None and _WEIGHT.fullmatch(weight):
            weights[name.lower()] = float(weight[:9])
    weight_of = weights.get(coding, 0.0)
    return weight_of > 0 and weight_of >= weights.get("identity", 0.0)


def _is_range(text: str) -> bool:
    kind, slash, subtype = text.partition("/")
    return (
        bool(slash) and fields.is_token(kind) and fields.is_token(subtype) and (kind != "*" or subtype == "*")
    )


def _weight(weights: dict[str, float], kind: str) -> float:
    """By the range that fits most closely."""
    for fitting in (kind, kind.partition("/")[0] + "/*", "*/*"):
        if fitting in weights:
            return weights[fitting]
    return 0.0
