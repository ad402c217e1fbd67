"""Zones: what is crowded in one is found, planned and spread when another has nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distfs.commands.operator import Operator
from distfs.commands.rebalance import plan_rebalance
from distfs.model import Policy
from distfs.upkeep.rebalance import dry_run
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import UpkeepCluster, bytes_of, drive


@pytest.mark.parametrize("policy", [Policy(1, 1), Policy(2, 2)], ids=str)
def test_a_zone_that_joins_gets_its_share_of_every_slice(
    tmp_path: Path, metadb_url: str, policy: Policy
) -> None:
    zones = ["rack1"] * 4 + ["rack2"] * 2
    with UpkeepCluster(tmp_path, metadb_url, nodes=4, zones=zones) as cluster:
        data = bytes_of(6)
        files = [cluster.upload(data, policy), cluster.upload(bytes_of(2, 2), policy)]
        small = cluster.upload(b"one block", policy)
        rebalance = cluster.rebalance()
        assert drive(rebalance).detail["moved"] == 0
        cluster.start_nodes([4, 5])
        new = {cluster.id(4), cluster.id(5)}
        moves = list(dry_run(cluster.db, cluster._nodes(), 0.99, soon))
        drive(rebalance)
        share = policy.width // 2
        for file in [*files, small]:
            for piece in cluster.file(file).slices:
                assert len(new.intersection(piece.nodes)) == share
                assert len(set(piece.nodes)) == policy.width
        slices = sum(len(file.slices) for file in [*files, small])
        assert len({move.id for move in moves}) == len(moves) == share * slices, "the plan had told so"
        assert cluster.download(files[0]) == data
        assert list(dry_run(cluster.db, cluster._nodes(), 0.99, soon)) == []


def test_a_node_that_joins_after_a_pass_begins_another_at_once(tmp_path: Path, metadb_url: str) -> None:
    with UpkeepCluster(tmp_path, metadb_url, nodes=3, zones=["a", "a", "b", "c"]) as cluster:
        file = cluster.upload(bytes_of(2), Policy(1, 2))
        rebalance = cluster.rebalance()
        assert drive(rebalance).detail["moved"] == 0
        cluster.start_node(3)
        drive(rebalance)
        for piece in cluster.file(file).slices:
            assert {cluster.id(2), cluster.id(3)} < set(piece.nodes)


def test_the_plan_says_what_moves_for_zones(
    tmp_path: Path, metadb_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with UpkeepCluster(tmp_path, metadb_url, nodes=2, zones=["a", "a", "b"]) as cluster:
        file = cluster.upload(bytes_of(3))
        operator = Operator(cluster.config, cluster.config, cluster.meta, cluster.db, cluster.directory)
        plan_rebalance(operator, as_json=False)
        assert "no slice has more fragments in one zone than it must" in capsys.readouterr().out
        cluster.start_node(2)
        before = cluster.fragments(file)
        plan_rebalance(operator, as_json=True)
        entry = json.loads(capsys.readouterr().out)
        count, size = len(file.slices), sum(piece.size for piece in file.slices)
        assert (entry["fragments_to_spread"], entry["bytes_to_spread"]) == (count, size)
        assert {move["target"] for move in entry["moves"]} == {cluster.id(2)}
        plan_rebalance(operator, as_json=False)
        assert f", of that {count} fragments, " in (told := capsys.readouterr().out)
        assert " out of crowded zones: " in told
        assert cluster.fragments(file) == before


def test_crowded_slices_are_found_a_page_at_a_time(tmp_path: Path, metadb_url: str) -> None:
    with UpkeepCluster(tmp_path, metadb_url, nodes=2, zones=["a", "a", "b"]) as cluster:
        files = [cluster.upload(bytes_of(1, seed)) for seed in range(7)]
        cluster.start_node(2)
        alone = cluster.upload(bytes_of(1, 9), Policy(1, 0))
        ids = sorted(piece.id for file in files for piece in file.slices)
        for scan, limit in ((2, 5), (3, 2), (100, 3), (100, 100)):
            after, found = None, []
            while True:
                tasks, after = cluster.db.crowded_slices(["a", "b"], after, scan, limit, soon())
                found += [task.piece.id for task in tasks]
                if after is None:
                    break
            assert found == ids, (scan, limit)
        assert alone.slices[0].id not in ids
