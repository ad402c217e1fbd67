"""``distfs drain``, ``undrain`` and ``forget``: taking a storage node out of the cluster."""

from __future__ import annotations

import re
from uuid import UUID

from distfs.commands.display import Progress, fragments_in_words, leaving_in_words
from distfs.commands.nodes import named_nodes
from distfs.commands.operator import Operator
from distfs.commands.plan import Plan
from distfs.commands.waiting import wait_until_none
from distfs.errors import Refused
from distfs.model import Node
from distfs.process.output import complain, tell
from distfs.upkeep.model import Leaving
from distfs.upkeep.rebalance import dry_drain


def trust(operator: Operator, named: str) -> int:
    """-> 0. For a node whose folder lost its secret."""
    node = operator.node(named)
    operator.db.trust_node(node.id, operator.deadline())
    tell(
        f"node {node.id} ({node.address}) is believed once more: start it now; its secret holds from then on"
    )
    return 0


def drain(operator: Operator, named: str, *, wait: bool, patience: float) -> int:
    """Empty a node; -> 0: it is empty, or not waited for; 1: it gets no emptier. Raises Refused while it is down."""
    node = operator.node(named)
    if wait:
        _require_up(node)
    operator.db.set_node_state(node.id, "draining", operator.deadline())
    where = f"node {node.id} ({node.address})"
    if not wait:
        tell(f"{where} is draining: it takes nothing new; `distfs nodes` tells when it is empty")
        return 0

    leaving: Leaving

    def left() -> int:
        nonlocal leaving
        leaving = operator.db.leaving(node.id, operator.walk())
        return leaving.fragments or int(not leaving.safe)

    reason = wait_until_none(operator, "rebalance", f"draining node {node.id}", left, patience)
    if not reason:
        tell(
            f"{where} is {leaving_in_words(leaving)}. Stop it with SIGTERM, then take it off the list: "
            f"`distfs forget {node.id}`"
        )
        return 0
    if leaving.fragments:
        stays = f"still keeps {fragments_in_words(leaving.fragments)}: {reason}"
    else:
        stays = (
            "is empty, but a change in MetaDB that began before it drained may still put a fragment there: it waits "
            "for another change or for a standby (see pg_stat_activity)"
        )
    complain(f"distfs: {where} {stays}. It goes on draining; do not unplug it")
    return 1


def plan_drain(operator: Operator, named: str) -> int:
    """Print where a node's fragments would go; nothing changes. -> 0: all of them would; 1: it would not get empty.

    Raises Refused while it is down.
    """
    node = operator.node(named)
    _require_up(node)
    plan, left = Plan(operator), operator.db.fragments_left(node.id, operator.walk())
    progress = Progress(f"planning for node {node.id}")
    try:
        for step in dry_drain(operator.db, plan.nodes, node.id, operator.deadline):
            plan.add(step)
            progress.show(plan.count, left)
    finally:
        progress.end()
    where = f"node {node.id} ({node.address})"
    tell(plan.in_words())
    if others := [other for other, kept in plan.leaving.items() if kept.fragments and other != node.id]:
        tell(f"not counted: what has to leave {named_nodes(others)}, draining as well")
    if plan.stays:
        stays = "; ".join(f"{amount}: {reason}" for reason, amount in plan.stays.items())
        complain(f"distfs: {where} would not get empty. {stays}. Start another storage node")
        return 1
    told = "can be emptied: there is room for all of it" if plan.count else "is empty: nothing to move"
    tell(f"{where} {told}")
    return 0


def _require_up(node: Node) -> None:
    if node.unreachable:
        raise Refused(
            f"node {node.id} ({node.address}) heartbeats and does not answer, so it cannot be drained: repair makes "
            f"anew what it kept; stop it, and then `distfs forget {node.id}`"
        )
    if not node.alive:
        raise Refused(
            f"node {node.id} ({node.address}) is down, so it cannot be drained: start it, or have `distfs repair "
            f"--now` make anew what it kept, and then `distfs forget {node.id}`"
        )


def undrain(operator: Operator, named: str) -> int:
    """Let a draining node take part again; -> 0."""
    node = operator.node(named)
    operator.db.set_node_state(node.id, "active", operator.deadline())
    tell(f"node {node.id} ({node.address}) takes part again")
    return 0


def forget(operator: Operator, named: str) -> int:
    """Take a node off the list for good; -> 0. Raises Refused, in words, when data would be lost."""
    node = operator.node(named)
    left = operator.db.fragments_left(node.id, operator.walk())
    progress = Progress(f"looking what is on node {node.id} alone")
    try:
        operator.db.forget_node(node.id, operator.walk(), lambda seen: progress.show(seen, left))
    finally:
        progress.end()
    rest = f": repair makes its {fragments_in_words(left)} anew on others" if left else ""
    tell(f"node {node.id} ({node.address}) is forgotten{rest}")
    return 0


def undo_forget(operator: Operator, named: str) -> int:
    """Let a node that was forgotten join once more; -> 0. Raises NotFound, in words."""
    try:
        known = int(named) if re.fullmatch(r"\d{1,9}", named, re.ASCII) else UUID(named)
    except ValueError:
        raise Refused(f"{named!r} is neither the id nor the UUID of a node that was forgotten") from None
    number = operator.db.undo_forget(known, operator.deadline())
    tell(
        f"what was node {number} may join again: start it; it gets a new id, and what it keeps is used where missed"
    )
    return 0
