"""``python -m bench`` on a tiny file: what it prints and saves, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as bench_main
from bench import lost, paced, processes, profile, small
from bench.curl import Content
from bench.report import Goal, GoalMissed, judge
from distfs.errors import Corrupt

#: With others that take all of the machine or measure it, one after another.
pytestmark = pytest.mark.xdist_group("heavy")

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120


@contextmanager
def bench(tmp_path: Path, *arguments: str, path: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """The command, with its data and its results in ``tmp_path``."""
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    with subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments, *places],
        cwd=ROOT,
        env=os.environ | ({"PATH": path} if path is not None else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # it cleans up; nothing to one that has ended
            process.wait(PATIENCE_S)


def left_behind(tmp_path: Path) -> list[str]:
    """Files in the work folder, and processes whose command line names it."""
    running = [" ".join(processes.command_line(pid)) for pid in processes.descendants(0)]
    work = tmp_path / "work"
    return [line for line in running if str(work) in line] + [str(file) for file in work.iterdir()]


def saved(tmp_path: Path) -> dict[str, Any]:
    (path,) = (tmp_path / "results").glob("*.json")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_throughput_measures_distfs_and_the_floor_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "throughput", "--mb", "3", "--runs", "2") as process:
        output, complaints = process.communicate(timeout=PATIENCE_S)
    assert not complaints or "goals missed: " in complaints
    assert process.returncode == (1 if complaints else 0)
    assert "all 6 files came back from distfs byte for byte" in output
    document = saved(tmp_path)
    assert document["machine"]["cores"] >= 1
    figures = document["results"]["throughput"]
    assert [series["name"] for series in figures["upload"]] == ["floor", "distfs PUT", "distfs form"]
    assert [series["name"] for series in figures["download"]] == ["floor", "distfs"]
    for series in figures["upload"] + figures["download"]:
        assert series["size"] == 3_000_000
        assert len(series["seconds"]) == 2
        assert all(seconds > 0 for seconds in series["seconds"])
        assert all(peak > 1_000_000 for peak in series["peak_bytes"].values())
    for series in figures["upload"][1:]:
        assert {"service", "node 1", "node 2", "node 3", "PostgreSQL 1"} <= series["peak_bytes"].keys()
        assert {"service", "node", "PostgreSQL", "curl"} <= series["cpu_s"].keys()
        assert len(series["ratios"]) == 2
    assert left_behind(tmp_path) == []


def test_fairness_compares_both_modes_and_counts_what_the_accounting_costs(tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "fairness", "--mb", "2", "--runs", "2") as process:
        output, complaints = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, complaints) == (0, "")
    assert "Jain's index of the rates" in output
    figures = saved(tmp_path)["results"]["fairness"]
    assert [shares["mode"] for shares in figures["shares"]] == ["fair", "batch"]
    assert all(len(shares["rates"]) == 8 for shares in figures["shares"])
    assert all(1 / 8 <= jain <= 1 for jain in figures["jain"])
    assert [(o["way"], len(o["off_s"]), len(o["on_s"])) for o in figures["overhead"]] == [
        ("upload", 2, 2),
        ("download", 2, 2),
    ]
    assert left_behind(tmp_path) == []


def test_admission_is_compared_with_a_service_that_lets_everything_in(tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "admission", "--mb", "3", "--runs", "1", "--batch", "5") as process:
        output, complaints = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, complaints) == (0, "")
    assert "time ratio, pair by pair" in output
    figures = saved(tmp_path)["results"]["admission"]["overhead"]
    assert [(o["size"], len(o["off_s"]), len(o["on_s"])) for o in figures] == [
        (3_000_000, 1, 1),
        (1 << 20, 5, 5),
        (4096, 5, 5),
    ]
    assert left_behind(tmp_path) == []


def test_deadlines_are_compared_with_a_service_that_has_none(tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "deadlines", "--mb", "3", "--runs", "1") as process:
        output, complaints = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, complaints) == (0, "")
    assert "time ratio, pair by pair" in output
    figures = saved(tmp_path)["results"]["deadlines"]["overhead"]
    assert [(o["way"], len(o["off_s"]), len(o["on_s"])) for o in figures] == [
        ("upload", 2, 2),
        ("download", 2, 2),
    ]
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(("first_s", "slice_s"), [(10.1, 0.0001), (1.0, 0.0011)])
def test_a_goal_that_is_missed_is_an_exit_code_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_s: float, slice_s: float
) -> None:
    def measured(*_: object) -> None:
        lost.judge([lost.Found(1_000_000, 2, first_s, slice_s, 0.1)])

    monkeypatch.setitem(bench_main.SCENARIOS, "lost", (measured, ""))
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "lost", "--results", str(tmp_path / "results")])
    monkeypatch.setattr(bench_main, "_heed_signals", lambda: None)
    monkeypatch.setattr(bench_main, "_ignore_signals", lambda: None)
    assert bench_main.main() == 1
    assert [each["slice_s"] for each in saved(tmp_path)["results"]["lost"]] == [slice_s]


def test_what_it_costs_to_find_what_is_lost_is_measured_for_two_and_three_copies(tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "lost", "--lost", "500") as process:
        output, complaints = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, complaints) == (0, "")
    assert "goals: the first batch within 10 s, 1 ms a slice" in output
    figures = saved(tmp_path)["results"]["lost"]
    assert [(each["lost"], each["width"]) for each in figures] == [(500, 2), (500, 3)]
    assert all(each["first_s"] > 0 and each["slice_s"] > 0 for each in figures)
    assert left_behind(tmp_path) == []


def test_codes_are_compared_with_copies_also_with_two_nodes_down(tmp_path: Path) -> None:
    with few(tmp_path, "codes") as found:
        ways = {way["name"]: way for way in found}
        assert set(ways) > {"upload 1+1", "upload 4+2", "download 4+2, two nodes down"}
        assert all(rate > 0 for way in ways.values() for rate in way["rates"])


def test_repair_is_measured_beside_the_disk(tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "repair", "--repair-mb", "10", "--idle-s", "1") as process:
        output, complaints = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, complaints) == (0, "")
    assert "the disk's own sequential writes" in output
    figures = saved(tmp_path)["results"]["repair"]
    assert figures["repair"]["bytes"] > 0
    assert figures["repair"]["seconds"] > 0
    assert left_behind(tmp_path) == []


def test_decisions_on_a_large_cluster_are_timed(tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "decisions", "--slices", "3000", "--runs", "2") as process:
        output, complaints = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, complaints) == (0, "")
    assert "30 nodes in 5 zones, 4+2" in output
    figures = saved(tmp_path)["results"]["decisions"]
    assert [(one["name"], one["count"]) for one in figures] == [
        ("order of repair", 3000),
        ("plan of a rebalancing", 3000),
        ("plan of spreading over zones", 3000),
        ("targets of repair", 300),
        ("placement of new slices", 300),
    ]
    assert [len(one["seconds"]) for one in figures] == [2, 2, 2, 1, 1]
    assert all(min(one["seconds"]) > 0 for one in figures)
    outcomes = {one["name"]: one["outcome"] for one in figures}
    assert outcomes["order of repair"] == "begins at redundancy 0"
    assert outcomes["targets of repair"] == "300 found"
    assert outcomes["placement of new slices"] == "1,800 fragments"
    for plan in ("plan of a rebalancing", "plan of spreading over zones"):
        assert int(outcomes[plan].split()[0].replace(",", "")) > 100


@contextmanager
def few(tmp_path: Path, name: str) -> Iterator[Any]:
    """What a scenario with goals found, with few clients. Whether they are met is not looked at here."""
    small = ["--mb", "3", "--runs", "1", "--slow", "5", "--slow-s", "1", "--idle", "20", "--idle-s", "1"]
    with bench(tmp_path, "--only", name, *small) as process:
        output, complaints = process.communicate(timeout=PATIENCE_S)
    assert not complaints or "goals missed: " in complaints
    assert process.returncode == (1 if complaints else 0)
    assert "goals; load of the last minute" in output
    yield saved(tmp_path)["results"][name]
    assert left_behind(tmp_path) == []


def test_files_of_1_mib_are_compared_with_a_large_one(tmp_path: Path) -> None:
    with few(tmp_path, "medium") as ways:
        assert set(ways) == {"download", "upload"}
        assert all(len(way["medium"]) == len(way["large"]) == 1 for way in ways.values())


def test_a_file_that_no_page_cache_has_is_compared_with_dd(tmp_path: Path) -> None:
    with few(tmp_path, "cold") as found:
        assert len(found["dd"]) == len(found["download"]) == 1


def test_slow_clients_are_counted_and_a_fast_one_is_measured_beside_them(tmp_path: Path) -> None:
    with few(tmp_path, "slow") as (down, up):
        for crowd in (down, up):
            assert crowd["clients"]["complete"] == 5, crowd["clients"]["problems"]
            assert crowd["seen"]["health_ms"]
            assert len(crowd["alone"]) == 2
        assert len(up["clients"]["answers"]) == 5


def test_idle_connections_are_opened_and_found_open(tmp_path: Path) -> None:
    with few(tmp_path, "idle") as idle:
        assert (idle["answered"], idle["still_open"]) == ([20], [20])
        assert len(idle["without"]) == len(idle["beside"]) == 1


def test_memory_and_cpu_time_of_all_parts_are_measured(tmp_path: Path) -> None:
    with few(tmp_path, "footprint") as found:
        assert {"service", "node", "PostgreSQL", "up"} <= found["memory"][0].keys()
        assert all(size > 1_000_000 for size in found["memory"][0].values())
        assert set(found["cpu"]) == {"up", "down"}


def test_the_floor_of_small_files_keeps_them_and_a_slow_client_counts_only_right_bytes(
    tmp_path: Path,
) -> None:
    content = b"content" * 500

    def clients(port: int, path: str, expected: bytes) -> dict[str, Any]:
        def start(out: paced.Outcome) -> paced.Course:
            return paced.get(port, path, expected, 1e6, out)

        many = paced.Clients(start, 3, keep=False)
        many.run()
        return paced.figures(many.outcomes)

    with small.SmallFloor.running(tmp_path) as floor:
        assert len(small.fill(floor.port, "/put", "/{}", 5)) == 5
        connection = HTTPConnection("127.0.0.1", floor.port)
        bodies = []
        for path in ("/put", "/pack"):
            connection.request("PUT", path, content)
            bodies.append(connection.getresponse().read().decode().strip())
        path = f"/{bodies[0]}"
        right, wrong = clients(floor.port, path, content), clients(floor.port, path, content[:-1] + b"T")
        connection.close()
    packed = uuid.UUID(bodies[1]).bytes
    for number in (1, 2):
        kept = (tmp_path / f"small-floor-{number}" / "pack").read_bytes()
        assert packed in kept
        assert kept.endswith(content)
    assert (right["complete"], right["problems"]) == (3, {})
    assert (wrong["complete"], wrong["problems"]) == (0, {"wrong bytes": 3})


def test_every_goal_is_shown_and_those_missed_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    goals = [
        Goal("share", 0.7, 0.6),
        Goal("memory", 250.0, 200, least=False, unit=" MB", digits=0),
        Goal("first byte", None, 1, least=False, unit=" s"),
    ]
    with pytest.raises(GoalMissed) as raised:
        judge(goals, "found")
    assert str(raised.value) == (
        "2 of 3 goals missed: memory: 250 MB, at most 200 MB; first byte: none, at most 1 s"
    )
    assert raised.value.found == "found"
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in shown[-3:]] == ["met", "MISSED", "MISSED"]
    judge(goals[:1], "found")


def test_ctrl_c_stops_and_removes_everything(tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "memory", "--memory-mb", "2000") as process:
        deadline = time.monotonic() + PATIENCE_S
        while not list((tmp_path / "work").glob("*/data/node1")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert complaints == "bench: interrupted; everything it started is stopped and removed\n"
    assert left_behind(tmp_path) == []


def test_a_scenario_that_takes_too_long_ends_with_one_line(tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "floor", "--mb", "100", "--runs", "100000", "--limit", "2") as process:
        _, complaints = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert complaints == "bench: floor: took longer than 2 s; raise --limit or measure less\n"
    assert left_behind(tmp_path) == []
    assert not (tmp_path / "results").exists()


def test_small_without_wrk_says_how_to_get_it(tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "small", path=str(tmp_path)) as process:
        _, complaints = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert complaints == "bench: small: wrk is not installed; on Debian or Ubuntu: apt-get install wrk\n"


def test_a_wrong_byte_is_not_measured_as_a_right_one() -> None:
    with pytest.raises(Corrupt, match="file x: 3 bytes"):
        Content(3, "aa").expect(Content(3, "bb"), "file x")


def test_a_profile_counts_a_recursive_function_once_a_sample() -> None:
    found = profile.parse("main (a.py:1);walk (a.py:5);walk (a.py:5) 3\nmain (a.py:1) 1\n", lost=1, looks=10)
    shares = {function.name: (function.own, function.total) for function in found.functions}
    assert shares == {"walk (a.py:5)": (0.75, 0.75), "main (a.py:1)": (0.25, 1.0)}
    assert found.gil_held == 0.5
