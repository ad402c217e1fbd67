"""What MetaDB's driver loads for passwords is loaded when there is one."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, threading
import distfs.cli
from pg8000 import core

def loaded():
    return sorted(name for name in sys.modules if name.partition(".")[0] in ("asn1crypto", "scramp"))

print(*loaded())
found = []
threads = [threading.Thread(target=lambda: found.append(core.scramp.ScramClient)) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
client = found[0](["SCRAM-SHA-256"], "user", "password")
print(len(found), len(set(found)), client.get_client_first()[:3], "asn1crypto.x509" in loaded())
import scramp
print(scramp.ScramClient is found[0], hasattr(scramp, "__version__"))
"""


def test_no_command_loads_it_and_the_first_password_does_once() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["scramp", "8 1 n,, True", "True True"]
