"""The VM form: a disk with somebody's system on it becomes a read-only disk under dm-verity (docs/vm-form.md).

Whoever made the disk may be hostile, and its reader is a user's own machine: nothing of it is run or mounted here.
``disk`` tells the format by its first bytes, never by guessing, and gives the bytes; ``partitions`` finds the root
among them; ``filesystem`` looks at its superblock; ``system`` is all three in order. ``contents`` reads its folders and
links, so that ``units`` can tell whether the units are there that are asked for.
"""
