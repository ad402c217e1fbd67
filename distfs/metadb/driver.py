"""pg8000, without what it loads for passwords until there is one.

scramp, by which it proves one (SCRAM), loads all of X.509: a sixth of what a command of distfs needs to start, and
2 MB, of no use where MetaDB asks for none.
"""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType
from typing import Any


class _WhenAsked(ModuleType):
    """Stands for a module until something of it is wanted."""

    _loading = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        with self._loading:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            module = importlib.import_module(self.__name__)
        return getattr(module, name)


sys.modules.setdefault("scramp", _WhenAsked("scramp"))

from pg8000.converters import make_params, timestamptz_in  # noqa: E402
from pg8000.core import EXECUTE_MSG, SYNC_MSG, Context  # noqa: E402
from pg8000.native import Connection, DatabaseError, InterfaceError  # noqa: E402

__all__ = [
    "EXECUTE_MSG",
    "SYNC_MSG",
    "Connection",
    "Context",
    "DatabaseError",
    "InterfaceError",
    "make_params",
    "timestamptz_in",
]
