"""A part that tells how it was started, and ends with the code that it is told: ``python -m tests.mirror CODE``."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

if __name__ == "__main__":
    limits = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    numbers = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
    streams = [getattr(sys, name) for name in ("stdin", "stdout", "stderr")]
    told = {
        "words": [sys.argv, sys.orig_argv, __name__, __package__],
        "environment": dict(os.environ),
        "child's environment": subprocess.check_output(["env"], text=True),
        "folder": [str(Path.cwd()), sys.path],
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "limits": [resource.getrlimit(each) for each in sorted(limits)],
        "signals": [repr(signal.getsignal(each)) for each in sorted(numbers)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "leads": [os.getpid() == os.getsid(0), os.getpid() == os.getpgrp()],
        "threads": [each.name for each in threading.enumerate()],
        "streams": [[each.encoding, each.errors, each.line_buffering, each.fileno()] for each in streams],
        "loaded": sorted({"distfs.storage_server", "pytest"} & set(sys.modules)),
        "read": sys.stdin.read(),
    }
    print(json.dumps(told))
    print("an error", file=sys.stderr)
    sys.exit(int(sys.argv[1]))
