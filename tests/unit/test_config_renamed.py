"""Settings that have another name now: what they were called before still works, and is told."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from distfs.config import file as config_file
from distfs.config.settings import Config, NodeConfig, PeersConfig, Seconds
from distfs.errors import ConfigError

#: Every key that a section took over, with a value that is not its default.
OF_BEFORE = {
    "connections": "7",
    "max_connections": "77",
    "connection_idle": "7s",
    "connection_age": "7min",
    "connect_timeout": "700ms",
    "stall_timeout": "7s",
    "patience": "7s",
    "base_timeout": "7s",
    "min_rate": "7MiB/s",
    "hedge_min": "7ms",
    "hedge_budget": "7%",
    "breaker_failures": "7",
    "breaker_pause": "7s",
}


def load(folder: Path, text: str, **environ: str) -> tuple[Config, list[str]]:
    """The configuration, and what was warned of."""
    (folder / "c.yml").write_text(text)
    said: list[str] = []
    return config_file.load(str(folder / "c.yml"), environ, said.append), said


def refused(folder: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_section_that_was_split_shares_no_name_with_its_part() -> None:
    """Else a name of before would mean two things."""
    names = {field.name for field in fields(PeersConfig)}
    assert names == OF_BEFORE.keys()
    assert not names & {field.name for field in fields(NodeConfig)}


@pytest.mark.parametrize("key", OF_BEFORE)
def test_a_name_of_before_in_the_file_works_and_the_new_one_is_told(tmp_path: Path, key: str) -> None:
    now, silence = load(tmp_path, f"peers: {{{key}: {OF_BEFORE[key]}}}")
    assert not silence
    assert now != Config()
    assert load(tmp_path, f"node: {{{key}: {OF_BEFORE[key]}, zone: z}}\npeers:")[0].peers == now.peers
    before, said = load(tmp_path, f"node: {{{key}: {OF_BEFORE[key]}}}")
    assert before == now
    assert said == [f"config: write the new names of these: node.{key} is peers.{key} now"]


@pytest.mark.parametrize("key", OF_BEFORE)
def test_a_name_of_before_in_the_environment_works_and_the_new_one_is_told(tmp_path: Path, key: str) -> None:
    old, new = f"DISTFS_NODE_{key}".upper(), f"DISTFS_PEERS_{key}".upper()
    now, silence = load(tmp_path, "", **{new: OF_BEFORE[key]})
    assert not silence
    assert now != Config()
    before, said = load(tmp_path, "", **{old: OF_BEFORE[key]})
    assert before == now
    assert said == [f"environment: write the new names of these: {old} is {new} now"]


def test_several_names_of_before_are_one_line(tmp_path: Path) -> None:
    _, [line] = load(tmp_path, "node: {patience: 1s, min_rate: 2MiB/s, zone: z}")
    assert line.endswith("of these: node.patience is peers.patience, node.min_rate is peers.min_rate now")


def test_both_names_in_one_place_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, "node: {patience: 1s}\npeers: {patience: 1s}") == (
        "config: node.patience is the old name of peers.patience, and both are set: remove node.patience"
    )
    assert refused(tmp_path, "", DISTFS_NODE_PATIENCE="1s", DISTFS_PEERS_PATIENCE="1s") == (
        "environment: DISTFS_NODE_PATIENCE is the old name of DISTFS_PEERS_PATIENCE, and both are set: "
        "remove DISTFS_NODE_PATIENCE"
    )


@pytest.mark.parametrize("in_file", ["node", "peers"])
@pytest.mark.parametrize("variable", ["DISTFS_NODE_PATIENCE", "DISTFS_PEERS_PATIENCE"])
def test_the_environment_wins_over_the_file_by_either_name(
    tmp_path: Path, in_file: str, variable: str
) -> None:
    config, _ = load(tmp_path, f"{in_file}: {{patience: 1s}}", **{variable: "2s"})
    assert config.peers.patience == Seconds(2)


def test_a_bad_value_is_named_by_what_was_written(tmp_path: Path) -> None:
    assert refused(tmp_path, "", DISTFS_NODE_PATIENCE="long").startswith("DISTFS_NODE_PATIENCE: ")
    assert refused(tmp_path, "node: 5").startswith("config: node must be a mapping")


def test_who_reads_a_file_anew_has_it_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "c.yml").write_text("node: {patience: 1s}")
    with caplog.at_level(logging.WARNING):
        config_file.load(str(tmp_path / "c.yml"), {})
    assert "node.patience is peers.patience now" in caplog.text


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("distfs", "distfs", ["down", "--data", "nowhere"]),
        ("distfs.storage_server", "storage_server", ["--data", "nowhere", "--host", "0.0.0.0"]),
    ],
)
def test_a_command_says_it_in_one_line_and_a_part_of_distfs_up_leaves_it_to_that(
    tmp_path: Path, module: str, name: str, words: list[str]
) -> None:
    (tmp_path / "config.yml").write_text("node: {patience: 1s}")
    line = f"{name}: config: write the new names of these: node.patience is peers.patience now"

    def told(*more: str) -> list[str]:
        argv = [sys.executable, "-m", module, *words, *more]
        ended = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in ended.stderr
        return ended.stderr.splitlines()

    assert told().count(line) == 1
    if module != "distfs":
        assert line not in told("--exit-with-parent")
