"""KVM on arm64 through ioctls: virtual machine, vCPU, interrupt controller. No policy.

Importable anywhere; only ``Vm`` needs an open /dev/kvm.
"""

from vambrace.kvm.vcpu import Crashed, Exit, Interrupted, MmioRead, MmioWrite, SystemEvent, Vcpu, decode_exit
from vambrace.kvm.vm import Vm

__all__ = [
    "Crashed",
    "Exit",
    "Interrupted",
    "MmioRead",
    "MmioWrite",
    "SystemEvent",
    "Vcpu",
    "Vm",
    "decode_exit",
]
