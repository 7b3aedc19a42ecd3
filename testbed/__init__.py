"""The emulated server with a door: what tests and benchmarks need to reach into a running host.

The product's host has no login and no shell, so here another one is built from the same parts: its init opens the
door, a root shell on a virtio serial port, and then becomes the product's init. It is measured like any host, and its
reference values are its own.
"""
