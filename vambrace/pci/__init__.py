"""PCI as a guest sees it: a host bridge and devices of which the guest reaches what cannot hurt.

No I/O here: what a device really is stands behind ``Hardware``, and what the machine does for it behind ``Platform``.
"""
