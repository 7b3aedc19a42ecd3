"""Launch measurement of a Realm: pure functions, the standard library only.

The monitor computes it while it loads a Realm; anyone computes the same value offline from the bundle.
"""

from vambrace.measure.launch import (
    ALGORITHMS,
    PAGE,
    LaunchMeasurement,
    PlanLike,
    SegmentLike,
    VcpuLike,
    measure_launch,
)

__all__ = [
    "ALGORITHMS",
    "PAGE",
    "LaunchMeasurement",
    "PlanLike",
    "SegmentLike",
    "VcpuLike",
    "measure_launch",
]
