"""What this process tells of itself: the request that a thread works for, the log, and what is counted.

Way in: ``context``, ``history``, ``log_files``, ``log_query``, ``log_search``, ``logs``, ``metrics``,
``metrics_seen``, ``metrics_told``, ``tracing``.
"""
