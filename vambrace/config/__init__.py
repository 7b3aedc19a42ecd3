"""The configuration of a domain (docs/architecture.md, section 1), and a module for each subject in it.

Standard library only, and few modules of it: the VMM process imports this package.
"""

from vambrace.config.device import DEVICE_KINDS, Device, check_devices, check_networks
from vambrace.config.disk import BLOCK, Disk
from vambrace.config.domain import (
    MAX_CONFIG_BYTES,
    MAX_DISKS,
    MAX_SECONDS,
    MAX_VCPUS,
    SYSTEM_DISK,
    VM,
    DomainConfig,
)
from vambrace.config.endpoint import CONNECT, OFFER, ROLES, Endpoint, check_endpoints, listening_ports
from vambrace.config.zone import (
    MIN_APPLICATION_MEMORY,
    MIN_SYSTEM_MEMORY,
    MINIMUM_WINDOW,
    PAGE,
    PIN_HEADROOM,
    Zone,
    check_memory,
    check_percent,
    check_pins,
    window_bytes,
)

__all__ = [
    "BLOCK",
    "CONNECT",
    "DEVICE_KINDS",
    "MAX_CONFIG_BYTES",
    "MAX_DISKS",
    "MAX_SECONDS",
    "MAX_VCPUS",
    "MINIMUM_WINDOW",
    "MIN_APPLICATION_MEMORY",
    "MIN_SYSTEM_MEMORY",
    "OFFER",
    "PAGE",
    "PIN_HEADROOM",
    "ROLES",
    "SYSTEM_DISK",
    "VM",
    "Device",
    "Disk",
    "DomainConfig",
    "Endpoint",
    "Zone",
    "check_devices",
    "check_endpoints",
    "check_memory",
    "check_networks",
    "check_percent",
    "check_pins",
    "listening_ports",
    "window_bytes",
]
