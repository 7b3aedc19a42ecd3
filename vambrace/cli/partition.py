"""``vambrace partition``: who has which memory, processors and further things of a host for itself alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vambrace.cli import session
from vambrace.cli.output import Output, table, writing
from vambrace.cli.parser import Commands, host_option
from vambrace.errors import HostError

if TYPE_CHECKING:
    from vambrace.client.partition import Cache, Item, Partition, Verification

MIB = 1 << 20


def add(commands: Commands) -> None:
    parser = commands.add(
        "partition",
        "show which domain of a host has what for itself, and check it",
        _partition,
        "vambrace partition --verify",
    )
    parser.add_argument(
        "--verify", action="store_true", help="have the host check its running processes; exit code 5 if any overlap"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw it into this file")
    host_option(parser)


def _partition(options: argparse.Namespace, output: Output) -> int:
    with session.open_host(options, session.open_context()) as host:
        partition = host.partition()
        found = None
        if options.verify:
            output.progress("the host looks at its domains")
            found = host.verify_partition()
    if options.picture:
        # Not before it is asked for: every command imports this module.
        from vambrace.client.partition import draw

        with writing(options.picture):
            draw(options.picture, partition)
    value = {**partition.raw, "verification": found.raw} if found else partition.raw
    output.result(value, [*table_of(partition), *(_found(found) if found else ())])
    return HostError.exit_code if found and not found.passed else 0


def table_of(partition: Partition) -> list[str]:
    """Lines for people: who has what."""
    rows = [["DOMAIN", "MEMORY", *(kind.name.upper() for kind in partition.kinds), "SHARED PROCESSORS"]]
    for owner in partition.owners:
        own = (_items(owner.items.get(kind.name, ())) for kind in partition.kinds)
        rows.append([owner.name, f"{owner.memory // MIB} MiB", *own, _items(owner.shared_processors)])
    if partition.cache.host:
        kept = partition.cache.partition.partition("-")[0]
        own = (_items(partition.cache.host if kind.name == kept else ()) for kind in partition.kinds)
        rows.append(["(host)", "-", *own, ""])
    free = (_items(kind.free) for kind in partition.kinds)
    rows.append(["(free)", f"{partition.free // MIB} MiB", *free, ""])
    total = (_items(kind.total) for kind in partition.kinds)
    rows.append(["(all)", f"{partition.memory // MIB} MiB", *total, _items(partition.shared_processors)])
    lines = table(rows)
    for cpu in partition.shared_processors:
        names = [owner.name for owner in partition.owners if cpu in owner.shared_processors]
        if len(names) > 1:
            lines += ["", f"{' and '.join(names)} share processor {cpu}, as the host's settings allow"]
    lines += ["", _cache(partition.cache)]
    if partition.enforcement != "cgroup":
        lines += ["", f"NOT enforced by the kernel, so others may run on these processors: {partition.reason}"]
    return lines


def _items(items: tuple[Item, ...]) -> str:
    from vambrace.client.partition import spelled

    return spelled(items)


def _cache(cache: Cache) -> str:
    how = cache.partition.replace("-", ", ")
    missing = f" ({cache.reason})" if cache.reason else ""
    return f"last-level cache: {'not divided' if cache.partition == 'none' else f'divided by {how}'}{missing}"


def _found(found: Verification) -> list[str]:
    looked = f"{len(found.domains)} domains, {found.threads} threads, {found.descriptors} open files"
    if found.passed:
        return ["", f"verified: page frames, processors and files are each domain's as they were given ({looked})"]
    return ["", f"NOT APART ({looked}):", *(f"  {line}" for line in found.findings)]
