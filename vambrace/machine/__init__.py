"""One domain's machine: memory map, device tree, boot plan, and the process that runs it.

``plan_boot`` and what it uses are pure: no KVM, no root, any architecture.
"""

from vambrace.machine.plan import BootPlan, Segment, VcpuState, ZonePlan, plan_boot

__all__ = ["BootPlan", "Segment", "VcpuState", "ZonePlan", "plan_boot"]
