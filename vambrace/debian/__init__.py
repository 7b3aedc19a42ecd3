"""Debian as the source of every part that is not ours: packages by a private apt, trees, images, initrds.

Nothing here touches the machine's own package state. The mirror is the machine's own
(or ``VAMBRACE_DEBIAN_MIRROR``), the keys are Debian's, versions and hashes are recorded in ``packages.lock``.
"""
