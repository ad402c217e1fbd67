"""TLS: contexts from files that may change, sockets under it, and who the other side is.

Way in: ``authority``, ``contexts``, ``identity``, ``stream``.
"""
