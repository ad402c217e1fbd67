"""What is configured: ``settings`` is the shape, ``file`` reads it, ``rules`` holds what must fit together.

Way in: ``settings``, ``file``, ``callers``, ``processes``, ``reach``.
"""
