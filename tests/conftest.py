"""What every test may ask for; each group of fixtures is a module of its own."""

from __future__ import annotations

import io
import logging
import signal
from collections import Counter
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from distfs.config.settings import LogConfig
from distfs.telemetry.context import leave_request
from distfs.telemetry.logs import setup_logging
from tests.faults.ledger import OF_THE_TEST
from tests.faults.patch import Patch

pytest_plugins = ["tests.postgres", "tests.cluster.harness"]


#: Each takes a minute or more and cannot be divided: begun last, it would be all that still runs. The group is that
#: of the benchmarks, which run one after another.
LONGEST = (
    "test_readme_commands.py",
    "test_upkeep_kill.py",
    "test_rolling_restart.py",
    "test_repair_queue.py",
    "test_full_disk.py",
)
LONGEST_GROUP = "heavy"
#: The rest follows by how long a test takes: what is last are thousands of short ones, with which all end at once.
#: Those of a module are handed out together: to hand out each takes as long as many of them do.
SHORT = ("unit", "contract", "fuzz")


def pytest_configure() -> None:
    """A run that is ended by SIGTERM stops its servers, as one that is ended by Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # How long an example takes says what else the machine does, not whether we are right.
    settings.register_profile("distfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("distfs")


@pytest.fixture
def monkeypatch() -> Iterator[pytest.MonkeyPatch]:
    """pytest's, but each function that it puts in another's place has to be called."""
    patch = Patch()
    yield patch
    patch.undo()


@pytest.fixture
def log_of_process() -> Iterator[None]:
    """What a test sets up of the process's log is not the next one's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    setup_logging(LogConfig(), io.StringIO())
    root.handlers[:] = handlers
    root.setLevel(level)
    leave_request()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """A test that passed passes only if all that it was to break was broken."""
    result = yield
    OF_THE_TEST.settle()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """What is left of a test that failed is not the next one's."""
    try:
        return (yield)
    finally:
        OF_THE_TEST.forget()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before xdist looks for the marks
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    """Tests that share what their module made once run in one worker: else each worker would make it. Workers begin
    with what takes longest and cannot be divided (`make test` keeps xdist from an order of its own)."""
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("xdist_group"):
            continue
        if _is_short(item) or _shares(item):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    yield
    if hasattr(config, "workerinput"):  # a process of xdist's
        if config.option.loadgroup:
            _tell_groups(items)
        sizes = Counter(_group(item) for item in items)
        sizes[""] = 1

        def turn(item: pytest.Item) -> tuple[bool, bool, int]:
            longest = item.path.name in LONGEST or _group(item) == LONGEST_GROUP
            return not longest, _is_short(item), -sizes[_group(item)]

        items.sort(key=turn)


def _tell_groups(items: list[pytest.Item]) -> None:
    """xdist knows a group by the end of a test's id, where pytest 9.2 does not see it any more: nobody says that each
    worker makes then what they share, and that benchmarks run beside each other."""
    for item in items:
        group = f"@{_group(item)}"
        if group != "@" and not item.nodeid.endswith(group):
            from _pytest.nodeid import NodeId

            item._id = NodeId.parse(item.nodeid + group)
            assert item.nodeid.endswith(group)


def _group(item: pytest.Item) -> str:
    mark = item.get_closest_marker("xdist_group")
    return mark.args[0] if mark else ""


def _is_short(item: pytest.Item) -> bool:
    return item.path.parent.name in SHORT


def _shares(test: pytest.Function) -> bool:
    """Whether it asks for a fixture of its module's own scope."""
    fixtures = test._fixtureinfo.name2fixturedefs
    return any(fixtures[name][-1].scope == "module" for name in test.fixturenames if name in fixtures)
