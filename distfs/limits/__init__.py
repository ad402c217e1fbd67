"""Who may, how much room, how fast: admission, promises of room, the gate, bandwidth.

Way in: ``promises``, ``db``, ``callers``, ``gate``, ``bandwidth``, ``refusal``, ``tally``.
"""
