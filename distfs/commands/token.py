"""``distfs token``: who may use the service, and for what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from distfs.access.db import Listed, TokenDB
from distfs.access.terms import check_policies, in_words, of_first, read_terms
from distfs.commands.display import table
from distfs.commands.operator import Operator
from distfs.config.file import parse_seconds
from distfs.errors import Refused
from distfs.process.output import complain, tell
from distfs.quantity import size


def create(operator: Operator, terms: Mapping[str, Any], *, first: bool, as_json: bool) -> int:
    """Print a new token, alone on its line, so that a script can take it. -> 0. Raises Refused."""
    if first and terms:
        raise Refused("--first makes an administrator's token without limits: leave out the other flags")
    asked = of_first() if first else read_terms(terms)
    check_policies(asked.policies, operator.config.storage.policies)
    id, text = _db(operator).create(asked, operator.deadline(), first=first)
    if as_json:
        tell(json.dumps(_db(operator).made(id, text, asked, operator.deadline()), indent=2))
        return 0
    complain(f"distfs: token {id} of {asked.owner}: {in_words(asked)}; nobody can show it again:")
    tell(text)
    return 0


def list_tokens(operator: Operator, *, all: bool, as_json: bool) -> int:
    """-> 0."""
    found = _db(operator).listed(operator.deadline(), all=all)
    if as_json:
        tell(json.dumps([each.entry() for each in found], indent=2))
        return 0
    if found:
        heads = ("ID", "OWNER", "STATE", "HAS", "MAY", "NAME")
        tell(table(heads, [_row(each) for each in found]))
    elif not all:
        tell("there is no token that is good: `distfs token create --first` makes one for an administrator")
    return 0


def revoke(operator: Operator, id: str) -> int:
    """-> 0. Raises NotFound."""
    token = _id(id)
    _db(operator).revoke(token, operator.deadline())
    tell(f"token {token} is revoked; services that run know it within a second")
    return 0


def rotate(operator: Operator, id: str, overlap: str) -> int:
    """Print the new text. -> 0. Raises NotFound."""
    token = _id(id)
    try:
        seconds = parse_seconds(overlap)
    except ValueError as e:
        raise Refused(f"--overlap: {e}") from e
    text = _db(operator).rotate(token, seconds, operator.deadline())
    complain(f"distfs: token {token} has another text; that of before holds for {overlap}:")
    tell(text)
    return 0


def _row(token: Listed) -> tuple[str, ...]:
    state = "good"
    if token.revoked_at:
        state = f"revoked {token.revoked_at:%Y-%m-%d}"
    elif token.expires_at:
        state = f"until {token.expires_at:%Y-%m-%d %H:%M}"
    has = size(token.owned) if token.terms.quota else "-"
    return str(token.id), token.terms.owner, state, has, in_words(token.terms), token.terms.name


def _db(operator: Operator) -> TokenDB:
    return TokenDB(operator.meta)


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Refused(f"{text[:60]!r} is not a token's id: `distfs token list` shows them") from None
