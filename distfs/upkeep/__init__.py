"""What keeps the cluster whole without anybody: repair, scrub, orphans, trash, rebalance, and their runner.

Way in: ``runner``, ``db``, ``model``, ``decisions``, ``rebalance``, ``damage``, ``facts``, ``step``.
"""
