"""What this process tells of itself: the request that a thread works for, and the log.

Way in: ``context``, ``logs``.
"""
