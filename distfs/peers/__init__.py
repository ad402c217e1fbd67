"""Storage nodes as a service reaches them: who there is, connections, reads, hedges, breakers.

Way in: ``directory``, ``hedge``, ``late_read``, ``small_read``, ``versioned``, ``wanted_traces``, ``whole_put``.
"""
