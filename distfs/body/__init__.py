"""A request's body -> files: forms cut into parts, digests checked, one ``Source`` a file.

Way in: ``source``, ``ingest``, ``multipart``, ``decoded``.
"""
