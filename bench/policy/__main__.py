"""Prints how often each policy misses, per trace and window.

    python3 -m bench.policy [--core FOLDER] [--seed N] [--traces FOLDER] [--record] [TRACE ...]

Recorded traces take part when they are there; --record makes them first (root, Linux 6.8; some minutes). With another
seed, and a folder of their own, they are of the same programs with other data: what no policy was chosen by.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.policy import recorder, workloads
from bench.policy.compare import PERCENTS, compare, table
from bench.policy.engine import CORE, Engine, EngineError
from bench.policy.traces import SYNTHETIC, TRACES, TraceError, recorded, synthetic


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.policy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--core", type=Path, default=CORE, metavar="FOLDER", help="another zone.c and zone.h")
    parser.add_argument("--seed", type=int, default=1, help="of synthetic traces, and of recorded programs' data (1)")
    parser.add_argument("--traces", type=Path, default=TRACES, metavar="FOLDER", help="where recorded ones are")
    parser.add_argument("--record", action="store_true", help="record programs first")
    parser.add_argument("names", nargs="*", metavar="TRACE", help="only these (default: all)")
    options = parser.parse_args(arguments)
    try:
        if options.record:
            programs = (*workloads.NAMES, *workloads.HELD_OUT)
            wanted = [name for name in programs if not options.names or name in options.names]
            for name in wanted:
                print(f"{name}: recording ...", file=sys.stderr, flush=True)
                recorder.record_workload(name, options.traces, options.seed)
        traces = [synthetic(name, options.seed) for name in SYNTHETIC] + recorded(options.traces)
        if missing := set(options.names) - {trace.name for trace in traces}:
            print(f"no trace is called {min(missing)}", file=sys.stderr)
            return 2
        engine = Engine(options.core)
        chosen = [trace for trace in traces if not options.names or trace.name in options.names]
        print(table([compare(engine, trace, percent) for trace in chosen for percent in PERCENTS]))
    except (EngineError, TraceError, recorder.RecorderError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
