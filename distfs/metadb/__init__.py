"""What ``distfs.meta`` stands on: connections, URLs, the schema, an embedded PostgreSQL.

Way in: ``ballast``, ``driver``, ``embedded_postgres``, ``schema``, ``link``, ``transactions``, ``url``.
"""
