"""Who may do what: tokens, and the table that says what each may.

Way in: ``authorize``, ``db``, ``directory``, ``door``, ``terms``, ``token``.
"""
