"""``distfs alerts``: what burns now, as the service that leads the worker of this name last saw it."""

from __future__ import annotations

import json
import time
from typing import Any

from distfs.commands.display import duration, table
from distfs.commands.operator import Operator
from distfs.commands.status import is_running
from distfs.errors import Unavailable
from distfs.process.output import DONE, FAILED, tell


def show_alerts(operator: Operator, *, as_json: bool) -> int:
    """-> 0, or 1 when something burns. Raises Unavailable when no service looks."""
    found = [each for each in operator.db.workers(operator.deadline()) if each.name == "alerts"]
    if not found or not is_running(found[0]):
        raise Unavailable("no service looks for alerts: one with upkeep.enabled has to run")
    burning: Any = found[0].detail.get("burning") or []
    if as_json:
        tell(json.dumps(burning, indent=2))
    elif burning:
        rows = [
            (
                each["severity"],
                each["alert"],
                duration(max(0.0, time.time() - each["since"])),
                each["command"],
                each["summary"],
            )
            for each in burning
        ]
        tell(table(("SEVERITY", "ALERT", "SINCE", "RUN", "WHAT IT IS"), rows))
        tell("\n" + "\n".join(dict.fromkeys(each["runbook"] for each in burning)))
    else:
        tell("nothing burns")
    return FAILED if burning else DONE
