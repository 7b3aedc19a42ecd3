"""Virtio 1.2 devices over virtio-mmio. Everything the guest writes is hostile until checked.

A guest that breaks the protocol gets its device marked DEVICE_NEEDS_RESET (``GuestFault``); it can neither
reach memory outside its own nor make the VMM loop or allocate without bound.
"""
