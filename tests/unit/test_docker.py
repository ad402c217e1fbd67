"""docker/compose.yml says what distfs understands. (Containers themselves are not run by the tests.)"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from distfs.config import file as config_file
from distfs.metadb.schema import NODE_ROLE
from distfs.metadb.url import MetaURL
from distfs.model import Address

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())
SQL = (ROOT / "docker" / "roles.sql").read_text()
OURS = {name: part for name, part in COMPOSE["services"].items() if part["image"] == "distfs"}


@pytest.mark.parametrize("name", OURS)
def test_every_part_runs_a_module_with_settings_that_are_accepted(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty.yml").touch()
    settings = config_file.load(str(tmp_path / "empty.yml"), with_defaults(OURS[name]["environment"]))
    assert importlib.util.find_spec(OURS[name]["command"][0])
    assert MetaURL.parse(settings.metadb.url).hosts[0].name in COMPOSE["services"]
    if name.startswith("node"):
        assert settings.node.host == "0.0.0.0"
        assert Address.parse(settings.node.advertise) == Address(name, settings.node.port)
    elif name == "service":
        assert settings.http.host == "0.0.0.0"


def with_defaults(environment: dict[str, str]) -> dict[str, str]:
    """An environment as compose makes it where nobody has set anything."""
    return {key: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for key, value in environment.items()}


@pytest.mark.parametrize("name", OURS)
def test_every_part_is_itself_in_metadb_and_no_superuser(name: str) -> None:
    """Its role's password is the one that the step before has given it; tests/integration runs that one's SQL."""
    step, superuser = COMPOSE["services"]["roles"], COMPOSE["services"]["metadb"]["environment"]
    environment = OURS[name]["environment"]
    role = MetaURL.parse(environment["DISTFS_METADB_URL"])
    expected, variable = {
        "migrate": ("distfs", "METADB_OWNER_PASSWORD"),
        "service": ("distfs_service", "METADB_SERVICE_PASSWORD"),
    }.get(name, (NODE_ROLE, "METADB_NODE_PASSWORD"))
    assert (role.user, role.password) == (expected, "")
    assert environment["DISTFS_METADB_PASSWORD"] == step["environment"][variable]
    assert f"\\getenv {variable.split('_')[1].lower()}_password {variable}\n" in SQL
    assert step["environment"]["PGUSER"] != expected
    assert step["environment"]["PGPASSWORD"] == superuser["POSTGRES_PASSWORD"]
    assert step["environment"]["PGPASSWORD"] not in environment.values()


def test_the_roles_are_there_before_the_first_part() -> None:
    after = {name: list(part["depends_on"]) for name, part in COMPOSE["services"].items() if name != "metadb"}
    assert after.pop("roles") == ["metadb"]
    assert after.pop("migrate") == ["roles"]
    assert set(map(tuple, after.values())) == {("migrate",)}


def test_every_node_keeps_its_data_in_a_volume_of_its_own() -> None:
    volumes = [part["volumes"] for part in OURS.values() if "volumes" in part]
    assert volumes == [[f"node{i}:/data"] for i in (1, 2, 3)]
    assert set(COMPOSE["volumes"]) == {"metadb", "node1", "node2", "node3"}


def test_the_image_gets_every_file_the_package_is_made_of() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in (ROOT / "docker" / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            assert all(f"!{name}" in ignored for name in line.split()[1:-1])
