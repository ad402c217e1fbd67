"""``distfs status --check``: the exit code says how well the cluster is; /readyz says that it is full."""

from __future__ import annotations

import json
import os
from uuid import UUID

from distfs.deadline import Deadline
from tests.cluster import Cluster, MakeCluster
from tests.cluster.operating import QUICK, SLICE, Ended, distfs, kill_and_notice
from tests.contract.litter import eventually

NOBODY = "http://127.0.0.1:1"


def check(cluster: Cluster, *services: str, **environ: str) -> Ended:
    flags = [word for url in services or [cluster.url] for word in ("--service", url)]
    return distfs(cluster, "status", "--check", *flags, **environ)


def test_the_exit_code_says_how_well_the_cluster_is(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=QUICK)
    uuid = cluster.upload(os.urandom(6 * SLICE))
    eventually(lambda: check(cluster).code == 0, "the upkeep has begun, and all is well")
    assert check(cluster).out.endswith("\ncheck: all is well\n")

    [pair, *_] = [piece.nodes for piece in cluster.meta.file(UUID(uuid), Deadline(60)).slices]
    first, second = [i for i in range(3) if cluster.node(i).id in pair]
    down = kill_and_notice(cluster, first)
    told = check(cluster)
    assert told.code == 1
    assert f"check: node {down} is down; " in told.out
    assert "have fewer fragments than they should" in told.out
    assert (
        distfs(cluster, "status", "--service", cluster.url).code == 0
    )  # without --check it is told, and that is all

    told = check(cluster, cluster.url, NOBODY)
    assert (told.code, f"service {NOBODY} tells nothing: " in told.out) == (3, True)

    kill_and_notice(cluster, second)
    told = check(cluster, cluster.url, NOBODY)  # what is lost weighs more than what cannot be told
    assert told.code == 2
    assert "too few fragments where they belong: `distfs fsck --deep` tells" in told.out.split("check: ")[1]
    entry = json.loads(distfs(cluster, "status", "--check", "--json", "--service", cluster.url).out)
    assert entry["check"]["code"] == 2

    cluster.start_node(first)
    cluster.start_node(second)
    eventually(lambda: check(cluster).code == 0, "all is well again")


def test_what_cannot_be_told_is_3_whatever_the_reason(cluster: Cluster) -> None:
    assert check(cluster, DISTFS_METADB_URL="postgresql://nobody@127.0.0.1:1/none").code == 3
    assert check(cluster, DISTFS_HTTP_PORT="many").code == 3
    assert distfs(cluster, "status", "--check", "--no-such-flag").code == 3


def test_a_full_cluster_is_ready_and_says_that_it_is_full(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=QUICK)
    eventually(lambda: check(cluster).code == 0, "the upkeep has begun, and all is well")
    uuid = cluster.upload(content := os.urandom(SLICE))
    assert cluster.request("GET", "/readyz").text == "ready\n"
    cluster.settings["node"] = {**QUICK["node"], "reserve": "99.9%"}
    cluster.write_settings()
    for i in range(3):
        cluster.stop_node(i)
        cluster.start_node(i)
    eventually(lambda: cluster.request("PUT", "/upload/x", b"x").status == 507, "nothing fits any more")

    eventually(lambda: "full" in cluster.request("GET", "/readyz").text, "it says so")
    ready = cluster.request("GET", "/readyz")
    assert ready.status == 200
    first, full = ready.text.splitlines()
    assert (first, full.startswith("full: no room for ")) == ("ready", True)
    assert "add storage nodes" in full
    assert cluster.download(uuid) == content
    told = check(cluster)
    assert (told.code, "check: the cluster is full: no room for " in told.out) == (1, True)
