"""``distfs undelete``: a deleted file back from the trash."""

from __future__ import annotations

from distfs.commands.operator import Operator, uuid_of
from distfs.process.output import tell
from distfs.quantity import size


def undelete(operator: Operator, uuid: str) -> int:
    """-> 0. Raises NotFound when it is not in the trash, or was there too long (upkeep.trash_ttl)."""
    file = uuid_of(uuid)
    operator.meta.undelete_file(file, operator.deadline())
    found = operator.meta.file(file, operator.deadline())
    tell(f"{file} is back: {found.name}, {size(found.size)}")
    return 0
