"""Storage nodes on disks of a size that the test chooses, without a file system for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distfs.storage.disk.space import Space
from distfs.storage.disk.store import DiskStore


def give_nodes_space(monkeypatch: pytest.MonkeyPatch, under: Path, space: Callable[[], int]) -> None:
    """Nodes with data in ``under`` find as many bytes on their disks as ``space`` says, less what they hold."""
    real = DiskStore._space

    def measured(store: DiskStore) -> Space:
        if not store.folder.is_relative_to(under):
            return real(store)
        used = 0
        for path in store.folder.rglob("*"):
            try:
                used += path.stat().st_blocks * 512
            except FileNotFoundError:  # renamed or deleted meanwhile
                continue
        return Space(space(), used, space() - used, reserve=0, files=None, metadb=False)

    monkeypatch.setattr(DiskStore, "_space", measured)
    monkeypatch.setattr(DiskStore, "disk", lambda store: str(store.node))
