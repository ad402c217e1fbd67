"""What every test may ask for; each group of fixtures is a module of its own."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.postgres", "tests.cluster.harness"]


def pytest_configure() -> None:
    """A run that is ended by SIGTERM stops its servers, as one that is ended by Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # How long an example takes says what else the machine does, not whether we are right.
    settings.register_profile("distfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("distfs")
