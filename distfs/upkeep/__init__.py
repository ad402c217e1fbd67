"""What keeps the cluster whole without anybody: repair, scrub, orphans, trash, rebalance, and their runner.

Way in: ``runner``, ``copies``, ``db``, ``model``, ``decisions``, ``rebalance``, ``damage``, ``facts``, ``step``.
"""
