"""``distfs trash``: what was deleted and can be undeleted; and an end of it, for who needs the room."""

from __future__ import annotations

import json
from collections.abc import Iterator

from distfs.commands.display import counted, duration, size, table
from distfs.commands.operator import Operator, uuid_of
from distfs.commands.waiting import wait_until_none
from distfs.errors import NotFound
from distfs.process.output import complain, tell
from distfs.upkeep.model import Deleted

_PAGE = 1000


def list_trash(operator: Operator, *, as_json: bool) -> int:
    """-> 0."""
    files = list(_all(operator))
    ttl = operator.config.upkeep.trash_ttl
    if as_json:
        tell(json.dumps([_entry(file) for file in files], indent=2))
        return 0
    if files:
        tell(table(("UUID", "SIZE", "DELETED", "STATE", "NAME"), [_row(file, ttl) for file in files]))
    total = sum(file.bytes for file in files)
    tell(f"{counted(len(files), 'file')}, {size(total)} on the storage nodes")
    return 0


def empty_trash(operator: Operator, uuid: str | None, *, wait: bool, patience: float) -> int:
    """-> 0: it is erased, or not waited for; 1: it is stuck. Raises NotFound."""
    id = uuid_of(uuid) if uuid else None
    files, bytes_ = operator.db.empty_trash(id, operator.deadline())
    if id and not files:
        raise NotFound(f"no file {id} in the trash: `distfs trash list` names those that are")
    what = f"{counted(files, 'file')}, {size(bytes_)} on the storage nodes"
    settling = operator.meta.settles_after
    if not wait:
        tell(f"{what}: being erased")
        return 0
    reason = wait_until_none(
        operator,
        "trash",
        "erasing",
        lambda: operator.db.trash_to_erase(operator.deadline()),
        patience + settling,
    )
    if reason:
        complain(f"distfs: {what}: not erased yet: {reason}")
        return 1
    tell(f"{what}: erased")
    return 0


def _all(operator: Operator) -> Iterator[Deleted]:
    last: Deleted | None = None
    while page := operator.db.trash_after(last, _PAGE, operator.deadline()):
        yield from page
        last = page[-1]


def _row(file: Deleted, ttl: float) -> tuple[str, ...]:
    left = max(0.0, ttl - file.age)
    state = "being removed" if file.ending or not left else f"can be undeleted for {duration(left)}"
    return str(file.id), size(file.size), f"{duration(file.age)} ago", state, json.dumps(file.name)[1:-1]


def _entry(file: Deleted) -> dict[str, object]:
    return {
        "uuid": str(file.id),
        "name": file.name,
        "size": file.size,
        "policy": str(file.policy),
        "bytes_on_nodes": file.bytes,
        "deleted_at": file.deleted_at.isoformat(),
        "can_be_undeleted": not file.ending,
    }
