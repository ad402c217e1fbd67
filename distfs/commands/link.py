"""``distfs link``: who without a token may have a file, or send one."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from distfs.access.authorize import Action, Relation, Verdict, Visibility, authorize, missing
from distfs.access.db import Token, TokenDB
from distfs.access.link_db import LinkDB, MadeLink, for_upload
from distfs.access.link_terms import read_download, read_upload
from distfs.access.token import hash_of
from distfs.commands.display import table
from distfs.commands.operator import Operator, uuid_of
from distfs.commands.running_service import TOKEN, configured_url, own_token
from distfs.errors import Forbidden, Refused
from distfs.process.output import complain, tell
from distfs.quantity import size

_PAGE = 1000


def create(operator: Operator, given: argparse.Namespace, terms: Mapping[str, Any]) -> int:
    """Print the URL of a new link, alone on its line, so that a script can take it. -> 0. Raises Refused, Forbidden,
    NotFound."""
    token, now = _token(operator, given.token), time.time()
    if given.of:
        asked = read_download(terms)
        given.uuid = str(uuid_of(given.of))
        file = operator.meta.file(UUID(given.uuid), operator.deadline())
        relation = Relation.OWN if file.owner == token.owner else Relation.OTHER
        if authorize(Action.SHARE, relation, token.scopes, Visibility(file.visibility)) is not Verdict.ALLOW:
            raise Forbidden(f"{token.shown} may not: {missing(Action.SHARE, relation)}")
        link, path, uses = (
            asked.link(token.id, file.id, file.size, now),
            f"download/{file.id}",
            asked.downloads,
        )
    else:
        invited = read_upload(terms)
        if authorize(Action.INVITE, Relation.OWN, token.scopes) is not Verdict.ALLOW:
            raise Forbidden(f"{token.shown} may not: {missing(Action.INVITE, Relation.OWN)}")
        link = for_upload(invited, token, operator.config.storage.policies, now)
        path, uses = "upload", invited.files
    made = LinkDB(operator.meta).make(token, link, uses, operator.deadline())
    id = UUID(bytes=made.id)
    given.change = f"link {id}"
    url = f"{(given.url or configured_url(operator.config)).rstrip('/')}/{path}?link={made.text}"
    if given.json:
        listed = MadeLink.new(id, token.owner, link, uses)
        tell(json.dumps(listed.entry() | {"url": url}, indent=2))
        return 0
    complain(f"distfs: link {id}, until {MadeLink.new(id, token.owner, link, uses).until}:")
    tell(url)
    return 0


def list_links(operator: Operator, owner: str | None, *, as_json: bool) -> int:
    """Those that have not expired; ``owner``: whose. -> 0."""
    found: list[MadeLink] = []
    while True:
        after = found[-1].id if found else None
        page = LinkDB(operator.meta).listed(after, _PAGE, operator.deadline(), owner)
        found += page
        if len(page) < _PAGE:
            break
    found.sort(key=lambda each: each.made_at)
    if as_json:
        tell(json.dumps([each.entry() for each in found], indent=2))
    elif found:
        tell(
            table(("ID", "OWNER", "FOR", "UNTIL", "STATE", "USED", "LIMITS"), [_row(each) for each in found])
        )
    else:
        tell("there is no link that has not expired: `distfs link create` makes one")
    return 0


def revoke(operator: Operator, given: argparse.Namespace) -> int:
    """-> 0. Raises Refused."""
    tokens = TokenDB(operator.meta)

    def maker(id: bytes) -> Token | None:
        return tokens.good(id, operator.deadline())

    sealed = LinkDB(operator.meta).named(given.of or "", maker, operator.deadline())
    if sealed is None:
        raise Refused(
            "this is no link: give its whole URL, in quotes, or its id: `distfs link list` shows it"
        )
    given.id = str(UUID(bytes=sealed.id))
    tokens.revoke_link(sealed, maker(sealed.token), operator.deadline())
    tell(f"link {given.id} is revoked; services that run know it within a second")
    return 0


def _token(operator: Operator, id: str | None) -> Token:
    """With whose rights a link is made. Raises Refused."""
    shown = own_token()
    if id:
        try:
            by: bytes | None = UUID(id).bytes
        except ValueError:
            raise Refused(f"{id[:60]!r} is not a token's id: `distfs token list` shows them") from None
    else:
        by = hash_of(shown)
    found = by and TokenDB(operator.meta).good(by, operator.deadline())
    if not found:
        raise Refused(
            "a link has the rights of a token, and ends with it: name a good one by --token ID, as `distfs token "
            f"list` shows it, or set {TOKEN} to one"
        )
    return found


def _row(made: MadeLink) -> tuple[str, ...]:
    link = made.link
    limits = [
        f"bytes {link.span[0]}-{link.span[1]}" if link.span else "",
        f"clients {link.network}" if link.network else "",
        f"files up to {size(link.max_size)}" if link.max_size else "",
        f"policy {link.policy}" if link.policy else "",
    ]
    used = f"{made.used} of {made.most}" if made.most else "any number"
    what = f"download {link.file}" if link.file else "upload"
    return str(made.id), made.owner, what, made.until, made.state, used, "; ".join(filter(None, limits))
