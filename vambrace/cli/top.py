"""``vambrace top``: all domains of a host, what they use and, of one's own Realms, what happens inside."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vambrace.cli import session
from vambrace.cli.output import Output, table
from vambrace.cli.parser import Commands, host_option, policy_options
from vambrace.errors import UsageError, VambraceError

if TYPE_CHECKING:
    from vambrace.cli.live import Screen
    from vambrace.client.watch import Row, Watch

MIB = 1 << 20
HEAD = (
    *("DOMAIN", "CLASS", "STATE", "PROCESSORS", "CPU", "MEMORY"),
    *("PLAINTEXT NOW", "ALLOWED", "MOST", "FAULTS/S", "MESSAGES"),
)
#: The columns from here on are numbers.
NUMBERS = 4
#: Seconds between the two looks that rates need.
BETWEEN = 2.0


def add(commands: Commands) -> None:
    parser = commands.add(
        "top",
        "show all domains of a host as they run, until q is pressed",
        _top,
        "vambrace top --once",
    )
    parser.add_argument("--once", action="store_true", help="look for two seconds, print one table and end")
    policy_options(parser)
    host_option(parser)


def _top(options: argparse.Namespace, output: Output) -> int:
    once = options.once or output.json_mode
    if not once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("what changes needs a terminal", hint="--once prints one table")
    with open_watch(options) as watch:
        rows = watch.look()
        if not once:
            # Not before it is asked for: it draws with a library that takes a while to load.
            from vambrace.cli import live

            live.show(lambda: _screen(watch.look()), _screen(rows))
            return 0
        output.progress("two seconds of the host")
        time.sleep(BETWEEN)
        rows = watch.look()
    output.result([as_dict(row) for row in rows], table(cells(rows)))
    return 0


def open_watch(options: argparse.Namespace) -> Watch:
    """Of the host that ``options`` name, with the Realms that were started from here."""
    from vambrace.client.realm import Realm
    from vambrace.client.watch import Watch

    context = session.open_context()
    host = session.open_host(options, context)
    trust = None
    with contextlib.suppress(VambraceError):  # nothing to verify a Realm by: all of them are strangers'
        trust = session.open_trust(options, context)

    def attach(uuid: str) -> Realm:
        return Realm.attach(uuid, host=host, trust=trust, context=context)

    def own() -> list[str]:
        return [state.uuid for state in context.all_domains() if trust and state.host == host.url]

    return Watch(host.usage, own, attach)


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Head and rows; what this user may not see, or nobody knows, is a hyphen."""
    found = [list(HEAD)]
    for row in rows:
        usage, inside = row.usage, row.inside
        own = ",".join(map(str, usage.processors))
        shared = ",".join(map(str, usage.shared_processors))
        hidden = ["-"] * 5
        if inside is not None:
            hidden = [
                *map(str, (inside.plaintext, inside.allowed, inside.most)),
                "-" if inside.faults is None else f"{inside.faults:.0f}",
                "-" if inside.message_bytes is None else _rate(inside.message_bytes),
            ]
        found.append(
            [
                *(usage.name, usage.kind, usage.state, own or (f"{shared} (shared)" if shared else "-")),
                *("-" if usage.cpu is None else f"{usage.cpu} %", f"{usage.memory // MIB} MiB"),
                *hidden,
            ]
        )
    return found


def as_dict(row: Row) -> dict[str, Any]:
    """For scripts: ``inside`` is null where the table has hyphens."""
    inside = None if row.inside is None else dataclasses.asdict(row.inside)
    return {**dataclasses.asdict(row.usage), "inside": inside}


def _rate(count: float) -> str:
    return f"{count / MIB:.1f} MiB/s" if count >= MIB else f"{count / 1024:.0f} KiB/s"


def _screen(rows: Sequence[Row]) -> Screen:
    from vambrace.cli.live import Screen

    memory = sum(row.usage.memory for row in rows) // MIB
    known = [row.usage.cpu for row in rows if row.usage.cpu is not None]
    title = f"{len(rows)} domains, {memory} MiB, {sum(known)} % of one processor   {time.strftime('%H:%M:%S')}"
    return Screen(title, cells(rows), NUMBERS)
