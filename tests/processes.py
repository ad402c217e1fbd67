"""What runs on this machine, without ``ps``, which a minimal system does not have."""

from __future__ import annotations

from pathlib import Path

import psutil


def command_of(process: psutil.Process) -> str:
    """What it was started as; "" when it has ended, or ends at this moment."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # denied: another user's, which is none of ours
        return ""


def has_ended(process: psutil.Process) -> bool:
    """Whether it does nothing any more, also when nobody has asked for its exit code yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # at this moment
        return True


def commands_naming(folder: Path) -> list[str]:
    """``pid command`` of each process whose command names a folder."""
    found = ((process.pid, command_of(process)) for process in psutil.process_iter())
    return [f"{pid} {command}" for pid, command in found if str(folder) in command]
