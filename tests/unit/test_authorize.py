"""Who may do what, row by row."""

from __future__ import annotations

import itertools

import pytest

from distfs.access.authorize import Action, Relation, Verdict, Visibility, authorize, needs_nothing, of_file
from distfs.access.terms import SCOPES

ALLOW, LOGIN, FORBIDDEN, HIDDEN = Verdict.ALLOW, Verdict.LOGIN, Verdict.FORBIDDEN, Verdict.HIDDEN

#: Of what is done to a file: the scope that is needed, and what who has it is told, by (relation, visibility).
READING = {
    ("own", "private"): ALLOW,
    ("own", "link"): ALLOW,
    ("own", "public"): ALLOW,
    ("other", "private"): HIDDEN,
    ("other", "link"): ALLOW,
    ("other", "public"): ALLOW,
    ("stranger", "private"): LOGIN,
    ("stranger", "link"): ALLOW,
    ("stranger", "public"): ALLOW,
}
CHANGING = {
    ("own", "private"): ALLOW,
    ("own", "link"): ALLOW,
    ("own", "public"): ALLOW,
    ("other", "private"): HIDDEN,
    ("other", "link"): FORBIDDEN,
    ("other", "public"): FORBIDDEN,
    ("stranger", "private"): LOGIN,
    ("stranger", "link"): LOGIN,
    ("stranger", "public"): LOGIN,
}
OF_FILES = {
    Action.DOWNLOAD: ("download", READING),
    Action.FACTS: ("download", READING),
    Action.DELETE: ("delete", CHANGING),
    Action.CHANGE: ("upload", CHANGING),
    Action.SHARE: ("download", CHANGING),
}
#: Of the rest: the scope; empty: any; None: nobody needs one.
OTHERS = {
    Action.USAGE: None,
    Action.HEALTH: None,
    Action.STATUS: "admin",
    Action.METRICS: "admin",
    Action.TOKENS: "admin",
    Action.UPLOAD: "upload",
    Action.LIST: "list",
    Action.INVITE: "upload",
    Action.UNLINK: "",
    Action.LINKS: "list",
}
ROWS = [
    (action, scope, Relation(relation), Visibility(visibility), verdict)
    for action, (scope, table) in OF_FILES.items()
    for (relation, visibility), verdict in table.items()
]


def test_every_action_is_in_the_tables_here() -> None:
    assert {*OF_FILES, *OTHERS} == set(Action)
    assert {action for action in Action if of_file(action)} == set(OF_FILES)
    assert {action for action in Action if needs_nothing(action)} == {Action.USAGE, Action.HEALTH}


@pytest.mark.parametrize(("action", "scope", "relation", "visibility", "verdict"), ROWS)
def test_what_is_done_to_a_file(
    action: Action, scope: str, relation: Relation, visibility: Visibility, verdict: Verdict
) -> None:
    scopes = [] if relation is Relation.STRANGER else [scope]
    assert authorize(action, relation, scopes, visibility) is verdict


@pytest.mark.parametrize(("action", "scope", "relation", "visibility", "verdict"), ROWS)
def test_every_other_scope_gives_no_more_than_a_stranger_has(
    action: Action, scope: str, relation: Relation, visibility: Visibility, verdict: Verdict
) -> None:
    if relation is Relation.STRANGER:
        return
    as_stranger = authorize(action, Relation.STRANGER, [], visibility)
    rest = [each for each in SCOPES if each not in (scope, "admin")]
    told = authorize(action, relation, rest, visibility)
    assert (told is ALLOW) == (as_stranger is ALLOW)
    assert told is not LOGIN
    if told is not ALLOW:
        assert told is (HIDDEN if verdict is HIDDEN else FORBIDDEN)


@pytest.mark.parametrize("action", OF_FILES)
@pytest.mark.parametrize(("relation", "visibility"), list(itertools.product(Relation, Visibility)))
def test_an_administrator_does_everything_to_every_file(
    action: Action, relation: Relation, visibility: Visibility
) -> None:
    assert authorize(action, relation, ["admin"], visibility) is ALLOW


@pytest.mark.parametrize("action", OF_FILES)
def test_no_file_and_one_that_is_not_seen_are_the_same(action: Action) -> None:
    for scopes in ([], ["download"], ["upload", "download", "list", "delete"]):
        hidden = authorize(action, Relation.OTHER, scopes, Visibility.PRIVATE)
        assert hidden is authorize(action, Relation.OWN, scopes, None) is HIDDEN
    assert authorize(action, Relation.STRANGER, [], Visibility.PRIVATE) is LOGIN
    assert authorize(action, Relation.STRANGER, [], None) is LOGIN
    assert authorize(action, Relation.OWN, ["admin"], None) is HIDDEN


@pytest.mark.parametrize(("action", "scope"), OTHERS.items())
def test_what_is_done_to_no_file(action: Action, scope: str | None) -> None:
    if scope is None:
        assert authorize(action, Relation.STRANGER, []) is ALLOW
        assert authorize(action, Relation.OWN, []) is ALLOW
        return
    assert authorize(action, Relation.STRANGER, []) is LOGIN
    assert authorize(action, Relation.OWN, ["admin"]) is ALLOW
    for given in SCOPES:
        allowed = given in (scope, "admin") or not scope
        assert authorize(action, Relation.OWN, [given]) is (ALLOW if allowed else FORBIDDEN)


def test_a_link_is_revoked_by_its_owner_and_administrators() -> None:
    for scope in SCOPES:
        told = authorize(Action.UNLINK, Relation.OTHER, [scope])
        assert told is (ALLOW if scope == "admin" else FORBIDDEN)
