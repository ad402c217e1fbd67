"""Ids of slices: random, and yet what is written within an hour lies in few folders."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from distfs.formats.fragment import FragmentHeader
from distfs.model import Policy
from distfs.storage.disk.store import DiskStore
from distfs.transfer.slice_plan import new_id
from tests.contract.samples import CLUSTER, put

HOUR, NOW = 3600.0, 1_800_000_000.0


def test_ids_differ_and_are_spread_evenly_over_the_first_byte() -> None:
    ids = [new_id(NOW) for _ in range(20_000)]
    assert len(set(ids)) == len(ids)
    assert {id.version for id in ids} == {4}
    first = [id.bytes[0] for id in ids]
    assert min(map(first.count, range(256))) > 20, (
        "78 on average: by this byte the slices of a node are counted"
    )


@pytest.mark.parametrize("byte", [i for i in range(16) if i not in (1, 6, 8)])
def test_every_other_byte_is_random(byte: int) -> None:
    assert len({new_id(NOW).bytes[byte] for _ in range(2000)}) > 200


def test_two_processes_make_no_id_twice() -> None:
    """Also when they were forked from one, and whoever seeds Python's own generator."""
    read, write = os.pipe()
    for _ in range(2):
        random.seed(5)
        child = os.fork()
        if not child:
            os.write(write, b"".join(new_id(NOW).bytes for _ in range(10)))
            os._exit(0)
        os.waitpid(child, 0)
    random.seed(5)
    found = os.read(read, 320) + b"".join(new_id(NOW).bytes for _ in range(10))
    assert len({found[at : at + 16] for at in range(0, len(found), 16)}) == 30
    os.close(read)
    os.close(write)


def test_the_second_byte_is_that_of_the_hour_and_comes_again() -> None:
    hours = [{new_id(NOW + hour * HOUR + s).bytes[1] for s in (0, 1800, 3599.9)} for hour in range(257)]
    assert all(len(each) == 1 for each in hours)
    assert len(set().union(*hours)) == 256
    assert hours[0] == hours[256]


def test_what_is_written_within_an_hour_makes_few_folders(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand of them take long, and nothing is lost here
    made: list[Path] = []
    for _ in range(1000):
        fragment = FragmentHeader(
            CLUSTER, new_id(NOW), 0, Policy(1, 1), 1024, new_id(NOW), 0, "x", "text/plain"
        )
        made.append(store.path(put(store, fragment, b"some")).parent)
    assert len(set(made)) <= 256
    assert len({folder.name for folder in made}) == 1
