"""VFIO (Documentation/driver-api/vfio.rst, linux/vfio.h): devices and their address spaces, by open descriptors.

Who may open them is decided elsewhere; here there is no policy and no path.
"""
