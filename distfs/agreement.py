"""Times that the whole cluster must hold to, whichever process goes by them.

A service whose ``upload_ttl`` is shorter than another's takes what that one still uploads for garbage. So MetaDB
keeps what was agreed on: the first service writes its own, and one with others refuses to start. ``distfs settings
--adopt`` changes it; a service that runs with the old ones hears of that within RECHECK_S, and takes no uploads and
does no upkeep from then on, until it is restarted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from distfs.config.settings import Config
from distfs.deadline import Deadline
from distfs.errors import Busy, OtherSettings, OutcomeUnknown, Outdated, Unavailable
from distfs.meta import MetaDB
from distfs.quantity import exactly

#: How long what MetaDB said is believed.
RECHECK_S = 10.0

DOWN_AFTER = "node.down_after"
_TIMES = (
    DOWN_AFTER,  # who is up
    "upkeep.repair_delay",  # whose fragments are lost
    "upkeep.upload_ttl",  # what nobody uploads any more,
    "upkeep.sweep_margin",  # by anybody's clock
    "upkeep.quarantine_ttl",  # what comes back after a restore of MetaDB
    "upkeep.trash_ttl",  # what can be undeleted
)


class Agreement:
    """What one service is configured with, against what the cluster agreed on. Thread-safe."""

    def __init__(self, meta: MetaDB, config: Config) -> None:
        self._meta, self._times = meta, times_of(config)
        self._agreed_until = float("-inf")
        self._known = False  # whether they agreed when it was last told

    def require(self, deadline: Deadline) -> None:
        """Raises OtherSettings when they differ, naming both, or when this release is too old for MetaDB; Unavailable
        when it cannot be told, unless they agreed when it was told last."""
        now = time.monotonic()
        if now < self._agreed_until:
            return
        if self._known:
            self._agreed_until = now + 1.0  # one asks, the others go on
        try:
            self._meta.check_release(deadline)
            agreed = agree(self._meta, self._times, deadline)
        except Outdated:
            self._known, self._agreed_until = False, float("-inf")
            raise
        except (Unavailable, Busy, OutcomeUnknown):
            if not self._known:
                raise
            return  # without MetaDB nobody can change it
        try:
            require_same(agreed, self._times)
        except OtherSettings:
            self._known, self._agreed_until = False, float("-inf")  # nobody goes on while the next one asks
            raise
        self._known, self._agreed_until = True, now + RECHECK_S


def times_of(config: Config) -> dict[str, float]:
    """The configured ones, by key."""
    return {key: float(getattr(getattr(config, section), name)) for key, section, name in _keys()}


def with_times(config: Config, agreed: Mapping[str, float]) -> Config:
    """``config`` with what the cluster agreed on, for a command that must see it as its services do."""
    for key, section, name in _keys():
        if key in agreed:
            values: dict[str, Any] = {name: agreed[key]}
            config = replace(config, **{section: replace(getattr(config, section), **values)})
    return config


def _keys() -> list[tuple[str, str, str]]:
    return [(key, *key.split(".")) for key in _TIMES]  # type: ignore[misc]


def agree(meta: MetaDB, times: Mapping[str, float], deadline: Deadline) -> dict[str, float]:
    """-> what the cluster agreed on: ``times`` for what nobody said anything of before."""
    agreed = meta.settings(deadline)
    if times.keys() - agreed.keys():
        meta.propose_settings(times, deadline)
        agreed = meta.settings(deadline)
    return agreed


def require_same(agreed: Mapping[str, float], times: Mapping[str, float]) -> None:
    """Raises OtherSettings, naming both."""
    other = [key for key, seconds in times.items() if agreed.get(key, seconds) != seconds]
    if not other:
        return
    differences = ", ".join(f"{key} {exactly(agreed[key])} and not {exactly(times[key])}" for key in other)
    raise OtherSettings(
        f"the cluster agreed on {differences}, as configured here: correct the configuration, or change it for all "
        "parts with `distfs settings --adopt` and restart them"
    )
