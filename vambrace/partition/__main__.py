"""``python3 -m vambrace.partition``, as root: what this machine's cache can be partitioned by, measured."""

from __future__ import annotations

import sys

from vambrace.errors import PartitionError
from vambrace.partition.colours import colours_of
from vambrace.partition.conflict import probe
from vambrace.partition.geometry import last_level, machine_caches
from vambrace.partition.placement import check_migration
from vambrace.partition.ways import Ways


def main() -> int:
    """0: something partitions the cache for certain; 1: nothing does."""
    certain = False
    try:
        ways = Ways()
        print(f"ways: {len(ways.items)} of {ways.resource}")
        certain = True
    except PartitionError as error:
        print(f"ways: none ({error.message})")
    try:
        caches = machine_caches()
        last = last_level(caches)
        print(f"last level: {last.size >> 10} KiB, {last.sets} sets of {last.ways} lines of {last.line} bytes")
        print(f"colours: {colours_of(last).count}")
        verdict = probe(caches)
        print(f"colours are {'confirmed' if verdict.confirmed else 'unconfirmed'}: {verdict.reason}")
        if verdict.figures:
            print(f"measured: {verdict.figures}")
        certain |= verdict.confirmed
    except PartitionError as error:
        print(f"colours: none ({error.message})")
    try:
        check_migration()
    except PartitionError as error:
        print(f"colours would not last: {error.message}; {error.hint}")
    return 0 if certain else 1


if __name__ == "__main__":
    sys.exit(main())
