"""Run a command as another account: ``unprivileged.py <uid> <gid> <parent> <path>... -- <command> <argument>...``.

PostgreSQL refuses to run as root, and distfs started by root in a container is common. This script becomes
the account and then the command (same process id). Where the account cannot get to one of the paths, because
a folder above it is closed to it (``/root`` usually is), it keeps one capability, CAP_DAC_OVERRIDE, that lets
it through; the alternative, opening those folders to everybody, would outlive the command.

A command that knows nothing of a parent it should follow is told by the system when that process, ``parent``, has
ended, in whatever way: by SIGINT, at which PostgreSQL stops as at Ctrl-C. 0: it is not told; only Linux can.

It is run as a file, by root's Python or, for the parent's sake alone, by anybody's, and imports nothing of distfs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# linux/prctl.h, linux/capability.h
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


def become(uid: int, gid: int, paths: list[str]) -> None:
    """Drop root for good. Raises OSError when the account cannot reach ``paths``, nor be let through."""
    linux = sys.platform == "linux"
    libc = ctypes.CDLL(None, use_errno=True)
    if linux:
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if all(os.access(path, os.X_OK) for path in paths):
        if linux:
            _keep(libc, 0)
        return
    if not linux:
        raise PermissionError(f"account {uid} cannot reach {' or '.join(paths)}")
    _keep(libc, 1 << _CAP_DAC_OVERRIDE)
    if libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0) != 0:
        raise PermissionError(f"account {uid} cannot reach {' or '.join(paths)}")


def _keep(libc: ctypes.CDLL, capabilities: int) -> None:
    """capset(2): permitted, effective and inheritable become exactly ``capabilities``, a bit mask."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(capabilities, capabilities, capabilities, 0, 0, 0)
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "cannot drop root's capabilities")


def follow(parent: int) -> None:
    """Have SIGINT when ``parent``, whose child this is, ends. A change of account would undo it; execve(2) does not.
    Raises OSError when that process has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != parent:
        raise ProcessLookupError("who started this has ended meanwhile")


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    uid, gid, parent, *paths = arguments[:split]
    command = arguments[split + 1 :]
    try:
        if os.geteuid() == 0:
            become(int(uid), int(gid), paths)
        if int(parent):
            follow(int(parent))
        os.execv(command[0], command)  # noqa: S606
    except OSError as e:
        sys.exit(f"FATAL:  {e}")


if __name__ == "__main__":
    main(sys.argv[1:])
