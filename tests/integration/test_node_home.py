"""A node's folder is made on purpose: what is not there, empty, or on another disk is never used as one."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from distfs.deadline import Deadline
from distfs.errors import ConfigError, NotHome
from distfs.meta import MetaDB
from distfs.model import Node
from distfs.storage.disk.home import Identity, Place, elsewhere, make_home, read_identity, require_identity
from tests import nursery
from tests.cluster.harness import clean_environment
from tests.contract.litter import eventually
from tests.integration.test_storage_server_command import ROOT, command, process, registered
from tests.privileges import need_root


def start(folder: Path, url: str) -> list[str]:
    return [arg for arg in command(folder, url) if arg != "--init"]


def refused(args: list[str], code: int) -> str:
    """The one line of a command that ends with ``code``."""
    ended = nursery.run(args, ROOT, clean_environment(), 60)
    assert (ended.returncode, ended.stdout) == (code, ""), ended
    lines = [line for line in ended.stderr.splitlines() if " INFO " not in line]
    assert len(lines) == 1, ended.stderr
    return lines[0]


def node_init(folder: Path) -> list[str]:
    return [sys.executable, "-m", "distfs", "node", "init", "--data", str(folder)]


def runs(folder: Path, url: str, meta: MetaDB) -> UUID:
    """It starts there, without --init; -> which node it is."""
    before = {node.address for node in meta.nodes(Deadline(60))}

    def here() -> list[Node]:
        return [node for node in meta.nodes(Deadline(60)) if node.alive and node.address not in before]

    environ = clean_environment(DISTFS_NODE_RESERVE="0")
    running = nursery.start(start(folder, url), ROOT, environ)
    try:
        eventually(here, "it is here", 30)
        [node] = here()
        running.terminate()
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait(60)
    return node.uuid


@contextmanager
def tmpfs(folder: Path) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("what", ["missing", "empty", "somebody else's"])
def test_a_folder_that_is_no_nodes_is_refused_and_left_alone(
    metadb_url: str, meta: MetaDB, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "disk" / "n"
    if what != "missing":
        folder.mkdir(parents=True)
    if what == "somebody else's":
        (folder / "photo.jpg").touch()
    before = sorted(tmp_path.rglob("*"))
    line = refused(start(folder, metadb_url), 5)
    assert line.startswith(f"storage_server: data folder {folder} is no storage node's: is its disk mounted?")
    assert f"`distfs node init --data {folder}`" in line
    assert sorted(tmp_path.rglob("*")) == before
    assert meta.nodes(Deadline(60)) == []


def test_a_node_needs_neither_metadb_nor_permission_to_be_refused(tmp_path: Path) -> None:
    """Before MetaDB is waited for: whoever mounts disks should read it at once."""
    assert "is its disk mounted?" in refused(start(tmp_path, "postgresql://u@127.0.0.1:1/d"), 5)


def test_the_command_that_makes_a_folder_a_node_s_works_as_it_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "my disk's folder"
    with pytest.raises(NotHome) as refused:
        require_identity(folder)
    _, told, _ = str(refused.value).split("`")
    ran = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m {told}"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert f"--data {shlex.quote(str(folder))}\n" in ran.stdout
    require_identity(folder)


@pytest.mark.parametrize("by", ["node init", "--init"])
def test_a_new_nodes_folder_is_made_once_and_is_the_same_node_from_then_on(
    metadb_url: str, meta: MetaDB, tmp_path: Path, by: str
) -> None:
    folder = tmp_path / "a" / "n"
    if by == "node init":
        done = subprocess.run(node_init(folder), cwd=ROOT, capture_output=True, text=True, check=True)
        made = read_identity(folder)
        assert made is not None
        assert done.stdout.startswith(f"{folder} is storage node {made.node}'s, on a disk of ")
        subprocess.run(node_init(folder), cwd=ROOT, check=True, capture_output=True)  # again: nothing changes
        assert read_identity(folder) == made
    else:
        with process(command(folder, metadb_url)):
            registered(meta)
    first = runs(folder, metadb_url, meta)
    known = read_identity(folder)
    assert known is not None
    assert known[:2] == (first, meta.cluster_id(Deadline(60)))
    assert runs(folder, metadb_url, meta) == first


def test_a_file_systems_own_folder_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert make_home(tmp_path) == read_identity(tmp_path)


@pytest.mark.parametrize("flags", [["node init"], ["--init"]])
def test_a_folder_with_something_in_it_is_not_made_a_nodes(
    metadb_url: str, tmp_path: Path, flags: list[str]
) -> None:
    (tmp_path / "photo.jpg").touch()
    args = node_init(tmp_path) if flags == ["node init"] else command(tmp_path, metadb_url)
    line = refused(args, 2)
    assert f"data folder {tmp_path} is not empty, it holds 'photo.jpg': name an empty one with --data" in line
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_folder_of_the_release_before_starts_and_is_known_by_its_place_from_then_on(
    metadb_url: str, meta: MetaDB, tmp_path: Path
) -> None:
    node, cluster = uuid4(), meta.cluster_id(Deadline(60))
    old = {"node": str(node), "cluster": str(cluster), "format": 1}
    (tmp_path / "node.json").write_text(json.dumps(old) + "\n")
    for folder in ("tmp", "data"):
        (tmp_path / folder).mkdir()
    assert runs(tmp_path, metadb_url, meta) == node
    now = json.loads((tmp_path / "node.json").read_text())
    assert now.items() > old.items()  # the release before reads it, too
    assert runs(tmp_path, metadb_url, meta) == node


def test_a_folder_of_another_file_system_is_refused_until_an_operator_says_that_it_was_moved(
    metadb_url: str, meta: MetaDB, tmp_path: Path
) -> None:
    make_home(tmp_path)
    node = runs(tmp_path, metadb_url, meta)
    home = json.loads((tmp_path / "node.json").read_text())
    changed = home | {"below": "."} | ({"filesystem": uuid4().hex} if home["filesystem"] else {})
    (tmp_path / "node.json").write_text(json.dumps(changed))
    for args in (start(tmp_path, metadb_url), command(tmp_path, metadb_url)):  # --init does not overrule it
        line = refused(args, 5)
        assert (
            f"data folder {tmp_path} is not on the file system it was made on: is its disk mounted?" in line
        )
    subprocess.run(node_init(tmp_path), cwd=ROOT, check=True, capture_output=True)
    assert runs(tmp_path, metadb_url, meta) == node


def test_a_disk_that_is_not_mounted_is_not_a_node(metadb_url: str, meta: MetaDB, tmp_path: Path) -> None:
    need_root("mounting a disk", "mount", "umount")
    with tmpfs(tmp_path / "disk"):
        point = tmp_path / "point"
        point.mkdir()
        bind = ["mount", "--bind", str(tmp_path / "disk"), str(point)]
        subprocess.run(bind, check=True)
        try:
            make_home(point)
            node = runs(point, metadb_url, meta)
            shutil.copytree(point, tmp_path / "copy")
        finally:
            subprocess.run(["umount", str(point)], check=True)
        assert "is its disk mounted?" in refused(start(point, metadb_url), 5)
        assert list(point.iterdir()) == []
        shutil.copytree(tmp_path / "copy", point, dirs_exist_ok=True)  # as by a restore before it was mounted
        point.chmod(0o700)
        assert "is its disk mounted?" in refused(start(point, metadb_url), 5)
        subprocess.run(bind, check=True)
        try:
            assert runs(point, metadb_url, meta) == node
        finally:
            subprocess.run(["umount", str(point)], check=True)


@pytest.mark.parametrize(
    ("then", "now", "same"),
    [
        (Place("a", "n"), Place("a", "x/n"), True),  # the same disk, mounted elsewhere
        (Place("a", "."), Place("b", "."), False),
        (Place("", "n"), Place("", "n"), True),
        (Place("", "."), Place("", "disks/a"), False),  # a mount point without its disk
        (Place("", "n"), Place("", "disks/a/n"), False),
        (Place("a", "n"), Place("", "disks/a/n"), False),
        (Place("", "home/x/n"), Place("", "srv/n"), True),  # moved on one disk
        (Place("", "home/x/n"), Place("", "."), True),
        (Place("", "home/x/n"), Place("a", "n"), True),
        (None, Place("a", "n"), True),
    ],
)
def test_where_a_folder_belongs(then: Place | None, now: Place, same: bool) -> None:
    known = Identity(uuid4(), uuid4(), then)
    assert (elsewhere(Path("n"), known, now) == "") is same


def test_a_folder_in_use_is_not_made_anew(metadb_url: str, meta: MetaDB, tmp_path: Path) -> None:
    with process(command(tmp_path / "n", metadb_url)):
        registered(meta)
        with pytest.raises(ConfigError, match="in use by another storage node"):
            make_home(tmp_path / "n")
