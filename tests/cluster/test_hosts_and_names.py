"""``distfs up`` where hosts are IPv6 or wrong, and where folders have names that not everything can hold."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from distfs.config import file as configuration
from distfs.config.callers import CallerMatch
from distfs.errors import ConfigError
from tests.cluster.test_up import StartUp, Up, answers, refused
from tests.contract.litter import eventually


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_it_runs_on_ipv6_in_both_spellings(up: StartUp, host: str) -> None:
    running = up("--host", host, DISTFS_NODE_HOST=host)
    assert running.process.stdout is not None
    first = running.process.stdout.readline()
    assert "ready at http://[::1]:" in first, running.log
    assert answers(first.split()[4] + "/readyz")
    eventually(lambda: "registered as node 1 at [::1]:" in running.log, "its log says so")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("nowhere.invalid", "correct node.host"),
        ("0.0.0.0", "need one address, not 0.0.0.0"),
        ("a b", "is no address and no name of a host"),
        ("a..b", "is no address and no name of a host"),
        ("1:2", "is no address and no name of a host"),
    ],
)
def test_a_host_of_nodes_that_cannot_be_is_one_line(up: StartUp, host: str, words: str) -> None:
    assert words in refused(up(DISTFS_NODE_HOST=host))


@pytest.mark.parametrize("name", [os.fsdecode(b"a\xffb"), "a\nb"])
def test_a_folder_that_postgresql_could_not_name_is_one_line(up: StartUp, tmp_path: Path, name: str) -> None:
    line = refused(up("--data", str(tmp_path / name)))
    assert "choose one whose name is UTF-8 without line breaks with --data" in line


def test_a_folder_of_any_letters_serves_in_any_locale(tmp_path: Path, up: StartUp) -> None:
    running: Up = up("--data", str(tmp_path / "donn\u00e9es"), new=True, LC_ALL="C").wait_ready()
    assert running.stop() == 0


@pytest.mark.parametrize("text", ["::1", "[::1]"])
def test_settings_take_ipv6_in_both_spellings(text: str) -> None:
    config = configuration.parse({"http": {"host": text}, "callers": {"trusted_proxies": [text]}})
    assert config.http.host == "::1"
    assert str(config.callers.trusted_proxies[0]) == "::1/128"
    assert str(CallerMatch.parse(text)) == "::1/128"


@pytest.mark.parametrize("text", ["[::1", "::1]", "a:1", "[a]", "x/y", "a b", "a\n", "x" * 64])
def test_a_host_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.host: .* is no address and no name of a host"):
        configuration.parse({"http": {"host": text}})
