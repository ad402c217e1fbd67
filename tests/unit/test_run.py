"""How tests are run: what ``make test`` asks of its workers."""

from __future__ import annotations

import contextlib
import os

import pytest


@pytest.fixture(scope="module")
def worker() -> str:
    """Which process this is; of a module's own scope, as what is dear to make is."""
    return os.environ.get("PYTEST_XDIST_WORKER", "the only one")


@pytest.mark.parametrize("number", range(12))
def test_tests_that_share_run_in_one_worker(
    worker: str, tmp_path_factory: pytest.TempPathFactory, number: int
) -> None:
    folder = tmp_path_factory.getbasetemp()  # of this worker; that of the run is above it
    first = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "worker of test_run"
    with contextlib.suppress(FileExistsError), first.open("x") as file:
        file.write(worker)
    assert first.read_text() == worker, f"test {number} runs elsewhere than the first"
