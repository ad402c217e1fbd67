"""docker/compose.yml says what distfs understands. (Containers themselves are not run by the tests.)"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from distfs import config_file
from distfs.metadb.url import MetaURL
from distfs.model import Address

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())
OURS = {name: part for name, part in COMPOSE["services"].items() if part["image"] == "distfs"}


@pytest.mark.parametrize("name", OURS)
def test_every_part_runs_a_module_with_settings_that_are_accepted(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty.yml").touch()
    settings = config_file.load(str(tmp_path / "empty.yml"), OURS[name]["environment"])
    assert importlib.util.find_spec(OURS[name]["command"][0])
    assert settings.http.host == settings.node.host == "0.0.0.0"
    assert MetaURL.parse(settings.metadb.url).hosts[0].name in COMPOSE["services"]
    if name.startswith("node"):
        assert Address.parse(settings.node.advertise) == Address(name, settings.node.port)


def test_every_node_keeps_its_data_in_a_volume_of_its_own() -> None:
    volumes = [part["volumes"] for part in OURS.values() if "volumes" in part]
    assert volumes == [[f"node{i}:/data"] for i in (1, 2, 3)]
    assert set(COMPOSE["volumes"]) == {"metadb", "node1", "node2", "node3"}


def test_the_image_gets_every_file_the_package_is_made_of() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in (ROOT / "docker" / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            assert all(f"!{name}" in ignored for name in line.split()[1:-1])
