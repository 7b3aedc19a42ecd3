"""The window's policy against the known ones: page references replayed, misses counted.

The policy itself is core/zone.c, driven by replay.c the way core/paging.c drives it; the others are in policies.py.
"""
