"""``vambrace advise``: what each percentage would cost each application, as a table and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vambrace.cli import session
from vambrace.cli.output import Output, table
from vambrace.cli.parser import Commands, host_option, policy_options
from vambrace.errors import UsageError

if TYPE_CHECKING:
    from vambrace.advice import Advice

SHOWN = (25, 50, 75, 80, 90, 95, 100)


def add(commands: Commands) -> None:
    parser = commands.add(
        "advise",
        "say what each percentage would cost each application",
        _advise,
        "vambrace advise patients --seconds 20 --picture cost.svg",
    )
    parser.add_argument("realm", metavar="REALM", help="name, identifier, or the beginning of one")
    parser.add_argument("--app", metavar="NAME", help="this application's zone only (or 'system')")
    parser.add_argument(
        "--seconds", type=_seconds, default=10.0, metavar="N", help="how long to sample, 1 to 3600 (default: 10)"
    )
    parser.add_argument(
        "--slowdown", type=_share, default=0.05, metavar="PERCENT", help="share of time you would give (default: 5)"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the curves into this file")
    host_option(parser)
    policy_options(parser)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from None


def _seconds(text: str) -> float:
    value = _number(text)
    if not 1 <= value <= 3600:
        raise argparse.ArgumentTypeError("1 to 3600 seconds")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError("more than 0 and less than 100 percent")
    return value / 100


def _advise(options: argparse.Namespace, output: Output) -> int:
    with session.open_realm(options) as realm:
        zones = [zone.name for zone in realm.config.zones]
        if options.app and options.app not in zones:
            raise UsageError(f"there is no zone {options.app}", hint=f"there are: {', '.join(zones)}")
        found = [one for one in realm.advise(options.seconds, output.progress) if options.app in (None, one.zone)]
    if options.picture:
        # Not before it is asked for: every command imports this module.
        from vambrace.client.curves import draw

        draw(options.picture, found)
    zones_json = [_as_json(one, options.slowdown) for one in found]
    value = {"realm": realm.uuid, "seconds": options.seconds, "zones": zones_json}
    output.result(value, _lines(found, options.slowdown))
    return 0


def _as_json(one: Advice, slowdown: float) -> dict[str, object]:
    return {
        "name": one.zone,
        "percent": one.percent,
        "touches": one.touches,
        "fault_seconds": one.fault,
        "advised": one.highest(slowdown) if one.tells else None,
        "curve": [
            {"percent": percent, "faults_per_second": one.misses[percent], "share": one.share(percent)}
            for percent in range(101)
        ],
    }


def _lines(found: list[Advice], slowdown: float) -> list[str]:
    rows = [["ZONE", "NOW", *(f"{percent} %" for percent in SHOWN), f"UP TO {slowdown:.0%}"]]
    for one in found:
        if not one.tells:
            rows.append([one.zone, f"{one.percent} %", *("" for _ in SHOWN), "idle"])
            continue
        shares = [f"{one.share(percent):.1%}" for percent in SHOWN]
        rows.append([one.zone, f"{one.percent} %", *shares, f"{one.highest(slowdown)} %"])
    lines = [*table(rows), ""]
    if found:
        lines.append(f"Share of a processor's time that page faults would take, at {found[0].fault * 1e6:.0f} µs each;")
        lines.append("less where pages are touched in order, because then one fault brings several.")
    if any(not one.tells for one in found):
        lines.append("A zone that was idle while it was sampled tells nothing: ask again under load, or for longer.")
    return lines
