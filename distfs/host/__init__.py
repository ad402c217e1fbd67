"""distfs's own HTTP host: sockets, threads, HTTP/1.1. It knows no path of ours.

Way in: ``server``, ``shared``.
"""
