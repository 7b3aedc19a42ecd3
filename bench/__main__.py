"""Runs the benchmarks of this folder and prints a table.

    python3 -m bench [--json build/bench.json] [--list] [NAME ...]

Exit codes: 0 all ran, or were not possible on this machine; 1 one failed; 2 there is no such benchmark.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import traceback
from pathlib import Path

from bench.report import Report, Row, Unavailable
from vambrace.errors import VambraceError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The benchmarks: every module of this folder that is not the frame itself, nor a package."""
    frame = {"__main__", "report"}
    found = pkgutil.iter_modules([str(FOLDER)])
    return sorted(module.name for module in found if not module.ispkg and module.name not in frame)


def run(name: str, report: Report) -> str | None:
    """Adds the rows of one benchmark; what went wrong, in one line, or None."""
    try:
        importlib.import_module(f"bench.{name}").run(report)
    except VambraceError as error:
        return f"{error.message}; {error.hint}" if error.hint else error.message
    return None


def progress(row: Row) -> None:
    print(f"  {row.name}  {row.subject}  {row.value:g} {row.unit}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file")
    parser.add_argument("--list", action="store_true", help="say which benchmarks there are")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all)")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(names()))
        return 0
    if unknown := sorted(set(options.names) - set(names())):
        print(f"no benchmark is called {unknown[0]}; there are: {', '.join(names())}", file=sys.stderr)
        return 2
    report = Report(progress)
    failed = False
    for name in options.names or names():
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            problem = run(name, report)
        except Unavailable as reason:
            print(f"{name}: not on this machine: {reason}", file=sys.stderr)
            continue
        except Exception:  # the others still run
            problem = "failed"
            traceback.print_exc()
        if problem:
            print(f"{name}: {problem}", file=sys.stderr)
            failed = True
    print(report.table())
    if options.json:
        report.write(options.json)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
