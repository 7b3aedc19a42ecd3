"""The window's policy against the known ones: page references replayed, misses counted.

The policy itself is core/zone.c, driven by replay.c much as core/paging.c and core/evict.c drive it; the
others are in policies.py.
"""
