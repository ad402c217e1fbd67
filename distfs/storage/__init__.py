"""A storage node: what comes over its connections, fragments on its disk, its heartbeats.

Way in: ``connection``, ``membership``, ``disk``, ``strangers``, ``metrics_port``.
"""
