"""How often core/zone.c misses, next to the known policies: bench/policy/, without its recording.

Rows ``policy/TRACE/PERCENT``, the window in percent of the pages that the trace touches: each policy's misses, ours
compared with the best of LRU, ARC, S3-FIFO and 2Q, which are told of every touch. ``policy-told/TRACE/PERCENT``
compares ours with the best of the four when they are told what a pager is told, for at most as many minor faults as
ours has. A minor fault found its page in standby, without decryption.
Recorded traces take part when `python3 -m bench.policy --record` has made them.
"""

from __future__ import annotations

from bench.policy.compare import PERCENTS, compare
from bench.policy.engine import Engine, EngineError
from bench.policy.traces import SYNTHETIC, TRACES, recorded, synthetic
from bench.report import Report, Unavailable


def run(report: Report) -> None:
    """Raises Unavailable: no compiler."""
    try:
        engine = Engine()
    except EngineError as error:
        raise Unavailable(str(error)) from error
    for trace in [synthetic(name) for name in SYNTHETIC] + recorded(TRACES):
        for percent in PERCENTS:
            name = f"policy/{trace.name}/{percent}"
            outcome = compare(engine, trace, percent)
            for policy, count in outcome.others.items():
                report.add(name, policy, count, "misses")
            report.add(name, "vambrace", outcome.ours, "misses", ratio=outcome.ratio, against=outcome.best)
            report.add(name, "vambrace, minor", outcome.minor, "faults")
            name, heard = f"policy-told/{trace.name}/{percent}", outcome.heard
            report.add(name, heard.policy, heard.misses, "misses")
            report.add(name, f"{heard.policy}, minor", heard.minor, "faults")
            report.add(name, "vambrace", outcome.ours, "misses", ratio=outcome.heard_ratio, against=heard.policy)
