"""distfs: a distributed file service. ``curl`` a file in, get a UUID; ``curl`` the UUID, get it back."""

__version__ = "0.1.0"
