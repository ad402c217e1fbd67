"""``distfs rebalance``: have fragments moved out of crowded zones and from full nodes to empty ones at once, or see
what would be."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from distfs.commands.operator import Operator
from distfs.commands.plan import Plan
from distfs.commands.waiting import running
from distfs.errors import Refused
from distfs.process.output import tell
from distfs.upkeep.decisions import Balance
from distfs.upkeep.rebalance import as_if_swept, dry_run

_AT_ONCE = 16  # nodes that are asked at the same time


def rebalance(operator: Operator, *, as_json: bool) -> int:
    """Wake the worker, which goes on by itself; -> 0. Raises Refused when no service runs it."""
    if as_json:
        raise Refused("--json is for the plan: give --dry-run, too")
    running(operator, "rebalance")
    operator.db.wake_worker("rebalance", operator.deadline())
    tell(
        "rebalance is woken: it tries again what it had postponed, and plans anew; `distfs status` shows how it "
        "goes, `distfs rebalance --dry-run` what it would move now"
    )
    return 0


def plan_rebalance(operator: Operator, *, as_json: bool) -> int:
    """Print what would move now; nothing changes. The exit code is 0."""
    plan, threshold = Plan(operator), operator.config.upkeep.rebalance_threshold
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="plan") as executor:
        nodes = as_if_swept(
            operator.directory, plan.nodes, executor, operator.deadline()
        )  # as the worker plans
    wanted = Balance(nodes, threshold).left
    for move in dry_run(operator.db, nodes, threshold, operator.deadline):
        plan.add(move)
    if as_json:
        tell(json.dumps(plan.entry() | {"bytes_wanted": wanted}, indent=2))
        return 0
    tell(plan.in_words())
    if not wanted and not plan.count:
        tell(
            "\nnothing to move: the nodes that take part are equally full, within upkeep.rebalance_threshold, and "
            "no slice has more fragments in one zone than it must"
        )
    elif not plan.count:
        tell("\nnothing can be moved: no fragment on the fuller nodes may go to an emptier one")
    for node, leaving in plan.leaving.items():
        if leaving.fragments:
            tell(f"node {node} is draining, which comes first: `distfs drain {node} --dry-run` plans it")
    return 0
