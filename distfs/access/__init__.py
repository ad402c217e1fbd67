"""Who may do what: tokens, links that are signed with them, and the table that says what each may.

Way in: ``authorize``, ``db``, ``directory``, ``door``, ``failures``, ``link``, ``link_db``,
``link_terms``, ``terms``, ``token``, ``uses``.
"""
