"""``vambrace advise``: what each percentage would cost each application, as a table and a picture."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from vambrace.cli import session
from vambrace.cli.output import Output, table, writing
from vambrace.cli.parser import Commands, host_option, percent, policy_options
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
    auto = parser.add_argument_group("let the host choose", "instead of a table: --app NAME --auto, or --no-auto")
    auto.add_argument(
        "--auto",
        action=argparse.BooleanOptionalAction,
        help="let the host hold this application's percentage as high as --slowdown allows, or not any more",
    )
    auto.add_argument(
        "--from", dest="lowest", type=percent, metavar="PERCENT", help="never below: this is what you can rely on"
    )
    auto.add_argument("--to", dest="highest", type=percent, metavar="PERCENT", help="never above (default: 100)")
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
    if options.auto is not None or (options.lowest, options.highest) != (None, None):
        return _auto(options, output)
    with session.open_realm(options) as realm:
        zones = [zone.name for zone in realm.config.zones]
        if options.app and options.app not in zones:
            raise UsageError(f"there is no zone {options.app}", hint=f"there are: {', '.join(zones)}")
        found = [one for one in realm.advise(options.seconds, output.progress) if options.app in (None, one.zone)]
    if options.picture:
        # Not before it is asked for: every command imports this module.
        from vambrace.client.curves import draw

        with writing(options.picture):
            draw(options.picture, found)
    zones_json = [_as_json(one, options.slowdown) for one in found]
    value = {"realm": realm.uuid, "seconds": options.seconds, "zones": zones_json}
    output.result(value, _lines(found, options.slowdown))
    return 0


def _auto(options: argparse.Namespace, output: Output) -> int:
    """Sign and send bounds, or that there are none any more."""
    from vambrace.attest.owner import Bounds

    if options.auto is None:
        raise UsageError("--from and --to are bounds for --auto", hint="give --auto, too")
    if options.app is None or options.picture is not None:
        raise UsageError("--auto and --no-auto are for one application, without a picture", hint="give --app NAME")
    if options.auto and options.lowest is None:
        raise UsageError("--auto needs a lower bound", hint="give --from PERCENT, the least that must be encrypted")
    if not options.auto and (options.lowest, options.highest) != (None, None):
        raise UsageError("--no-auto has no bounds", hint="leave --from and --to out")
    highest = 100 if options.highest is None else options.highest
    bounds = Bounds(options.lowest, highest, round(options.slowdown * 1000)) if options.auto else None
    with session.open_realm(options) as realm:
        output.progress("connecting")
        realm.auto(options.app, bounds, output.progress)
        name = realm.state.name
    value = {"realm": realm.uuid, "application": options.app, "auto": bounds and dataclasses.asdict(bounds)}
    held = f"is held from {options.lowest} to {highest} %, for up to {options.slowdown:.1%} of the time in page faults"
    output.result(value, [f"{name}: {options.app} {held if bounds else 'is not on auto any more'}"])
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
