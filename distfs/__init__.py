"""distfs: a distributed file service. ``curl`` a file in, get a UUID; ``curl`` the UUID, get it back."""

import sys
from importlib.util import find_spec

__version__ = "0.1.0"

#: The packages of pyproject's ``dependencies``, as they are imported.
_NEEDED = ("werkzeug", "pg8000", "yaml", "xxhash")

# `python -m distfs...` with a Python that has the code and not what it needs: a line, not a traceback.
if getattr(sys, "argv", [])[:1] == ["-m"] and (
    _missing := [name for name in _NEEDED if find_spec(name) is None]
):
    sys.exit(
        f"distfs is not installed for {sys.executable} ({', '.join(_missing)} missing): "
        "use .venv/bin/python, which `make run` makes, or run: pip install '.[embedded,codes]'"
    )
