"""``distfs settings``: the times that the whole cluster must hold to, and how to change them."""

from __future__ import annotations

from distfs.agreement import times_of
from distfs.commands.display import table
from distfs.commands.operator import Operator
from distfs.process.output import tell
from distfs.quantity import exactly


def settings(operator: Operator, *, adopt: bool) -> int:
    """-> 0, or 1 when the cluster agreed on other times than are configured here, and these are not adopted."""
    configured, agreed = times_of(operator.configured), operator.meta.settings(operator.deadline())
    changed = [key for key, seconds in configured.items() if agreed.get(key) != seconds]
    if adopt:
        operator.meta.adopt_settings(configured, operator.deadline())
        agreed |= configured
    rows = [[key, _seconds(agreed.get(key)), _seconds(configured[key])] for key in configured]
    tell(table(["SETTING", "AGREED ON", "CONFIGURED HERE"], rows))
    if adopt and changed:
        tell(
            f"changed: {', '.join(changed)}. Services that run with others take no uploads and do no upkeep from now "
            "on; restart them, and the nodes, with this configuration"
        )
    elif changed:
        tell(f"they differ in {', '.join(changed)}: correct config.yml, or run `distfs settings --adopt`")
    return 1 if changed and not adopt else 0


def _seconds(value: float | None) -> str:
    return "nothing yet" if value is None else exactly(value)
