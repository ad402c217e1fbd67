"""What every test may ask for; each group of fixtures is a module of its own."""

from __future__ import annotations

import signal

pytest_plugins = ["tests.postgres", "tests.cluster.harness"]


def pytest_configure() -> None:
    """A run that is ended by SIGTERM stops its servers, as one that is ended by Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
