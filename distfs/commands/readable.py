"""Whether a file can be read where MetaDB says that too few of its fragments are left: by reading it."""

from __future__ import annotations

from collections.abc import Container
from uuid import UUID

from distfs.commands.operator import Operator
from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.transfer.blocks import BlockPool
from distfs.transfer.download import Downloader


def is_readable(operator: Operator, id: UUID, slices: Container[int] | None = None) -> bool:
    """Block by block, from all that is left on any node, also put aside. ``slices``: only those; None: all."""
    limits = operator.config.peers
    try:
        file = operator.meta.file(id, operator.deadline())
        reader = Downloader(operator.directory, BlockPool(file.block_size, 4 * file.policy.width))
        at = 0
        for piece in file.slices:
            at += piece.size
            if slices is None or piece.ordinal in slices:
                reading = Deadline(limits.base_timeout + limits.patience + piece.size / limits.min_rate)
                for _ in reader.read(file, at - piece.size, at, reading):
                    pass
    except DistfsError:
        return False
    return True
