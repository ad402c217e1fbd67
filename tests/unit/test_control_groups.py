"""What control groups let a process have: of cores tells test_config_processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from distfs.process import control_groups
from distfs.process.control_groups import most_memory, most_tasks

UNIFIED = "0::/pod/box\n"
OLDER = "9:memory:/box\n8:pids:/box\n0::/\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_groups, "_PROC", tmp_path)
    monkeypatch.setattr(control_groups, "_CGROUPS", tmp_path)


@pytest.mark.parametrize(
    ("groups", "files", "tasks", "memory"),
    [
        (UNIFIED, {"pod/box/pids.max": "500", "pod/box/memory.max": "1048576"}, 500, 1 << 20),
        (UNIFIED, {"pod/pids.max": "70", "pod/box/pids.max": "500", "pids.max": "900"}, 70, None),
        (UNIFIED, {"pod/box/pids.max": "max", "pod/box/memory.max": "max"}, None, None),
        (UNIFIED, {"pod/box/pids.max": "", "other/pids.max": "1"}, None, None),
        (OLDER, {"pids/box/pids.max": "80", "memory/box/memory.limit_in_bytes": "4096"}, 80, 4096),
        # a container sees its own group as the root, whatever its path is
        (OLDER, {"pids/pids.max": "90"}, 90, None),
        ("", {"pids.max": "1"}, None, None),
    ],
)
def test_the_least_of_the_own_group_and_those_above_it(
    groups: str, files: dict[str, str], tasks: int | None, memory: int | None, tmp_path: Path
) -> None:
    for name, text in {"self/cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text and f"{text}\n")
    assert (most_tasks(), most_memory()) == (tasks, memory)
