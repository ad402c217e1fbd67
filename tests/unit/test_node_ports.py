"""The ports of the nodes of `distfs up`: remembered, and nobody else's while it runs."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distfs.local.cluster import NodePorts

HOST = "127.0.0.1"


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Callable[[], NodePorts]]:
    """What each `up` of one data folder makes."""
    with contextlib.ExitStack() as ends:

        def start() -> NodePorts:
            made = NodePorts(tmp_path / "ports.json", HOST)
            ends.callback(made.release)
            return made

        yield start


def test_a_port_is_nobody_elses_before_its_node_listens_and_after_it_died(
    ports: Callable[[], NodePorts],
) -> None:
    port = ports().of("node1")
    for _ in range(3):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((HOST, port))  # as the kernel looks at it for who asks for any port
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port)).close()
        with (
            socket.create_server((HOST, port)) as node,
            socket.create_connection((HOST, port)),
        ):
            node.accept()[0].close()


def test_a_node_comes_back_where_it_was(ports: Callable[[], NodePorts]) -> None:
    names = ["node1", "node2", "node3"]
    first = ports()
    before = [first.of(name) for name in names]
    first.save()
    first.release()
    assert len(set(before)) == 3
    second = ports()
    assert [second.of(name) for name in names] == before
    assert "node3" in second
    assert "node4" not in second


@pytest.mark.parametrize("remembered", ["taken", 99999, -1], ids=str)
def test_a_node_whose_port_cannot_be_had_gets_another(
    ports: Callable[[], NodePorts], tmp_path: Path, remembered: int | str
) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1] if remembered == "taken" else remembered
        (tmp_path / "ports.json").write_text(json.dumps({"node1": port}))
        assert 0 < ports().of("node1") < 65536
        assert ports().of("node1") != other.getsockname()[1]


def test_two_nodes_never_have_one_port(ports: Callable[[], NodePorts], tmp_path: Path) -> None:
    before = ports()
    (tmp_path / "ports.json").write_text(json.dumps({"node1": before.of("x"), "node2": before.of("x")}))
    before.release()
    both = ports()
    assert both.of("node1") != both.of("node2")
