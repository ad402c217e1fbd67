"""A few short random walks; ``make soak`` takes long ones. What they do and check is told in ``walk``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distfs.model import Policy
from tests.cluster import MakeCluster
from tests.faults.walk import Step, WalkFailed, damage, nodes_for, run_walk, walk_settings

STEPS = 25
#: What each walk has to have done: one that kills no node shows nothing of kills.
FAULTS = {"upload", "kill", "start", "corrupt", "heal", "delete", "orphan"}


@pytest.mark.parametrize(("policy", "seed"), [("1+1", 3), ("2+2", 4)])
def test_a_walk_loses_nothing(make_cluster: MakeCluster, policy: str, seed: int) -> None:
    parsed = Policy.parse(policy)
    cluster = make_cluster(nodes_for(parsed), walk_settings(parsed))
    walk = run_walk(cluster, parsed, seed, STEPS, FAULTS)
    assert len(walk.steps) >= STEPS


def test_a_walk_that_fails_says_how_to_take_it_again(make_cluster: MakeCluster) -> None:
    """Every copy of a file is removed behind the walk's back."""
    policy = Policy(1, 1)
    cluster = make_cluster(2, walk_settings(policy))
    steps = [Step("upload", (1000, 7)), Step("service"), Step("upload", (10, 8))]

    def sabotaged() -> Iterator[Step]:
        yield steps[0]
        for i in (0, 1):
            for path in cluster.fragments(i):
                path.unlink()
        yield from steps[1:]

    with pytest.raises(WalkFailed) as caught:
        run_walk(cluster, policy, 5, sabotaged())
    text = str(caught.value)
    assert text.startswith("walk with seed 5 and policy 1+1: ")
    listed = text.splitlines()[1:-1]
    assert [Step.parse(line) for line in listed[-3:]] == steps
    assert "--replay" in text.splitlines()[-1]


@pytest.mark.parametrize("content", [bytes(100), b""])
@pytest.mark.parametrize("way", range(4))
def test_every_way_of_damage_changes_the_file(tmp_path: Path, way: int, content: bytes) -> None:
    path = tmp_path / "fragment"
    path.write_bytes(content)
    damage(path, way, 12345)
    assert not path.exists() or path.read_bytes() != content
