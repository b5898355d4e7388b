"""Where indexes are created, synced, rebuilt and dropped.

In: requests of actors who may do so. Out: pages, and jobs in the background. Leaves to others: searching, permissions.
"""
