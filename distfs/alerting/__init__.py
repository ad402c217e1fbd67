"""What is wrong with a cluster, by what is counted: one table of alerts, for Prometheus and those who have none.

Way in: ``beside``, ``rules``, ``worker``.
"""
