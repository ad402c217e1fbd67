"""What a service does whose times are not, or are no longer, those that the cluster agreed on."""

from __future__ import annotations

import pytest

from distfs import agreement
from distfs.agreement import Agreement, times_of
from distfs.config.settings import Config
from distfs.deadline import Deadline
from distfs.errors import Busy, Cancelled, DistfsError, OtherSettings, OutcomeUnknown, Unavailable
from distfs.meta import MetaDB
from tests.contract.samples import soon


def test_nobody_goes_on_by_other_times_while_somebody_else_asks_again(
    meta: MetaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "RECHECK_S", 0.0)
    ours = Agreement(meta, Config())
    ours.require(soon())
    meta.adopt_settings({**times_of(Config()), "upkeep.upload_ttl": 60.0}, soon())
    with pytest.raises(OtherSettings):
        ours.require(soon())
    ask, asked = meta.settings, 0

    def settings(deadline: Deadline) -> dict[str, float]:
        nonlocal asked
        asked += 1
        if asked == 1:
            with pytest.raises(OtherSettings):
                ours.require(soon())
        return ask(deadline)

    monkeypatch.setattr(meta, "settings", settings)
    with pytest.raises(OtherSettings):
        ours.require(soon())
    assert asked == 2


@pytest.mark.parametrize("error", [OutcomeUnknown, Unavailable, Busy])
def test_who_agreed_before_goes_on_while_metadb_cannot_say(
    meta: MetaDB, monkeypatch: pytest.MonkeyPatch, error: type[DistfsError]
) -> None:
    """Also when it is lost while the times are proposed."""
    monkeypatch.setattr(agreement, "RECHECK_S", 0.0)
    ours = Agreement(meta, Config())

    def lost(*_: object) -> None:
        raise error("MetaDB was lost")

    monkeypatch.setattr(meta, "propose_settings", lost)
    with pytest.raises(error):
        ours.require(soon())
    monkeypatch.undo()
    ours.require(soon())
    ours._agreed_until = float("-inf")
    monkeypatch.setattr(meta, "settings", lost)
    ours.require(soon())


def test_a_request_that_was_given_up_does_not_go_on(meta: MetaDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "RECHECK_S", 0.0)
    ours = Agreement(meta, Config())
    ours.require(soon())
    ours._agreed_until = float("-inf")
    with soon().scope() as scope:
        scope.cancel("the client hung up")
        with pytest.raises(Cancelled, match="hung up"):
            ours.require(scope)
