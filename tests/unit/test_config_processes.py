"""How many processes a service has, and which part of its limits each may use."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from distfs.config.processes import count_of, part_of
from distfs.config.settings import AUTO, Bytes, Config, HttpConfig, MetaDBConfig, Processes, StorageConfig
from distfs.process import control_groups

MIB = 1 << 20


def with_processes(count: int) -> Config:
    return Config(http=HttpConfig(processes=Processes(count)))


def test_as_many_as_configured() -> None:
    assert [count_of(with_processes(count)) for count in (1, 2, 7)] == [1, 2, 7]


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_auto_is_one_a_core(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(control_groups, "_PROC", Path("/none"))
    assert count_of(with_processes(AUTO)) == cores


UNIFIED, OWN = "0::/pod/box\n", "3:cpuset:/box\n2:cpu,cpuacct:/box\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        (UNIFIED, {"pod/box/cpu.max": "200000 100000"}, 2),
        (UNIFIED, {"pod/box/cpu.max": "150000 100000"}, 2),
        (UNIFIED, {"pod/box/cpu.max": "20000 100000"}, 1),
        (UNIFIED, {"pod/box/cpu.max": "max 100000"}, 8),
        (UNIFIED, {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "300000 100000"}, 3),
        (UNIFIED, {"pod/box/cpu.max": "9900000 100000"}, 8),
        (UNIFIED, {}, 8),
        (UNIFIED, {"pod/box/cpu.max": ""}, 8),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        (OWN, {"cpu/box/cpu.cfs_quota_us": "250000", "cpu/box/cpu.cfs_period_us": "100000"}, 3),
        (OWN, {"cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "100000"}, 8),
        # a container sees its own group as the root, whatever its path is
        (OWN, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("", {}, 8),
    ],
)
def test_auto_is_no_more_than_the_quota_of_a_control_group(
    groups: str, files: dict[str, str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(control_groups, "_PROC", tmp_path)
    monkeypatch.setattr(control_groups, "_CGROUPS", tmp_path)
    for name, text in {"self/cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text and f"{text}\n")
    assert count_of(with_processes(AUTO)) == count


def test_auto_is_no_more_than_what_what_there_is_can_be_divided_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(control_groups, "_PROC", Path("/none"))
    config = with_processes(AUTO)
    assert count_of(replace(config, metadb=MetaDBConfig(pool_size=5))) == 5
    small = StorageConfig(memory_budget=Bytes(72 * MIB))
    assert count_of(replace(config, storage=small)) == 3
    assert count_of(replace(config, http=replace(config.http, max_connections=2))) == 2


def test_one_process_has_all() -> None:
    assert part_of(Config(), 1) == Config()


def test_the_parts_together_are_never_more_than_the_service_may_have() -> None:
    whole, part = Config(), part_of(Config(), 3)
    assert 3 * part.storage.memory_budget <= whole.storage.memory_budget
    assert 3 * part.metadb.pool_size <= whole.metadb.pool_size
    assert 3 * part.http.max_connections <= whole.http.max_connections
    assert 3 * part.peers.max_connections <= whole.peers.max_connections
    assert 3 * part.http.threads >= whole.http.threads
    assert part.peers.connections == 11
