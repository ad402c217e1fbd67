"""``distfs repair``: watch until the redundancy is full again; ``--now``: without waiting for silent nodes."""

from __future__ import annotations

from uuid import UUID

from distfs.commands.display import counted
from distfs.commands.nodes import named_nodes
from distfs.commands.operator import Operator
from distfs.commands.readable import is_readable
from distfs.commands.waiting import wait_until_none
from distfs.process.output import complain, tell
from distfs.upkeep.model import Backlog

_NAMED_FILES = 5


def repair(operator: Operator, *, now: bool, wait: bool, patience: float) -> int:
    """-> 0: all that can be read has its full redundancy, or is not waited for; 1: it is stuck, or data is lost."""
    if now:
        given_up = operator.db.give_up_silent_nodes(operator.deadline())
        operator.db.wake_worker("repair", operator.deadline())
        if given_up:
            tell(
                f"not waiting for {named_nodes(given_up)}, down or unreachable now: what they kept is made anew"
            )
    delay = operator.config.upkeep.repair_delay
    backlog: Backlog

    def left() -> int:
        nonlocal backlog
        backlog = operator.db.backlog(delay, operator.walk())
        return backlog.slices - backlog.hopeless

    if not wait:
        tell(f"{counted(left(), 'slice')} to repair; `distfs status` shows how it goes")
        return 0
    reason = wait_until_none(operator, "repair", "repairing", left, patience)
    if reason:
        complain(
            f"distfs: {counted(backlog.slices - backlog.hopeless, 'slice')} cannot be repaired: {reason}"
        )
    lost = _report_lost(operator, delay, backlog.hopeless)
    if not reason and not lost:
        tell("every slice has its full redundancy")
        _warn_of_silent(operator)
    return 1 if reason or lost else 0


def _report_lost(operator: Operator, delay: float, count: int) -> bool:
    """Say of ``count`` slices that they have too few fragments where they belong; whether there is any.

    No file is named for deletion that can be read by what is left of it elsewhere.
    """
    if not count:
        return False
    tasks = operator.db.work_to_repair(delay, 100, operator.walk())
    short: dict[UUID, set[int]] = {}
    for task in tasks:
        if task.redundancy_left < 0 and not task.trashed:
            short.setdefault(task.file, set()).add(task.piece.ordinal)
    looked_at = list(short)[:_NAMED_FILES]
    lost = [file for file in looked_at if not is_readable(operator, file, short[file])]
    if healing := [str(file) for file in looked_at if file not in lost]:
        complain(
            f"distfs: {', '.join(healing)}: read by what is left of slices elsewhere, which repair makes anew when "
            "it comes to them: run `distfs repair` again"
        )
    if lost or not short:
        more = "; `distfs fsck --deep` names the others" if len(short) > _NAMED_FILES else ""
        delete = (
            f"delete the files: {', '.join(map(str, lost))}{more}"
            if lost
            else "erase the deleted files they are of: `distfs trash empty`"
        )
        complain(
            f"distfs: {counted(count, 'slice')} cannot be read: too few fragments are left. Start the nodes that "
            f"kept them again, or {delete}"
        )
    return True


def _warn_of_silent(operator: Operator) -> None:
    """Nodes that are down for less than repair_delay still count, until they are given up."""
    waiting = operator.db.backlog(operator.config.node.down_after, operator.walk()).slices
    if waiting:
        down = named_nodes([node.id for node in operator.nodes() if not node.alive])
        tell(
            f"but {counted(waiting, 'slice')} count on {down}, down for less than upkeep.repair_delay: "
            "`distfs repair --now` does not wait for them"
        )
