"""How ``vambrace stats`` shows the zones of a Realm to its owner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vambrace.cli.output import table

if TYPE_CHECKING:
    from vambrace.client.traffic import Traffic
    from vambrace.client.zones import ZoneStats

BAR = 40  # letters of the longest bar
MIB = 1 << 20
_UNITS = ((1_000_000, "s"), (1000, "ms"), (1, "µs"))


def lines(zones: Sequence[ZoneStats], *, histogram: bool) -> list[str]:
    """Tables of memory, of work, and of the zones on auto; with ``histogram`` the answer times of each zone, too."""
    shown = [*table(list(_memory(zones))), "", *table(list(_work(zones)))]
    if len(auto := list(_auto(zones))) > 1:
        shown += ["", *table(auto)]
    for zone in zones if histogram else ():
        shown += ["", *_histogram(zone)]
    return shown


def traffic_lines(traffic: Sequence[Traffic]) -> list[str]:
    """A table of the messages with other Realms, nothing where there are no endpoints."""
    rows = [["ENDPOINT", "ROLE", "REALM", "OPEN", "CONNECTIONS", "REFUSED", "SENT", "RECEIVED"]]
    for row in traffic:
        numbers = (row["open"], row["connections"], row["refused"])
        ways = (_mebibytes(row["sent"]), _mebibytes(row["received"]))
        rows.append([row["endpoint"], row["role"], row["peer"] or "(others)", *map(str, numbers), *ways])
    return ["", *table(rows)] if traffic else []


def _memory(zones: Sequence[ZoneStats]) -> Iterator[list[str]]:
    yield ["ZONE", "PERCENT", "PAGES", "ALLOWED", "PLAINTEXT NOW", "MOST", "STANDBY", "PINNED"]
    for zone in zones:
        numbers = (zone["pages"], zone["window"], zone["plaintext"], zone["plaintext_max"], zone["standby"])
        percent = f"{zone['percent']} (open)" if zone["open"] else f"{zone['percent']}"
        pinned = f"{zone['pinned']} of {zone['pin_budget']}" if zone["pin_budget"] else f"{zone['pinned']}"
        yield [zone["name"], percent, *map(str, numbers), pinned]


def _work(zones: Sequence[ZoneStats]) -> Iterator[list[str]]:
    yield ["ZONE", "FAULTS", "STANDBY HITS", "EVICTIONS", "ENCRYPTED", "DECRYPTED", "MEAN TIME"]
    for zone in zones:
        faults = zone["faults"]
        mean = _time(zone["handler_ns"] / faults / 1000) if faults else "-"
        numbers = (faults, zone["standby_hits"], zone["evictions"])
        yield [zone["name"], *map(str, numbers), _mebibytes(zone["bytes_encrypted"]),
               _mebibytes(zone["bytes_decrypted"]), mean]  # fmt: skip


def _auto(zones: Sequence[ZoneStats]) -> Iterator[list[str]]:
    yield ["ZONE", "PERCENT", "AUTO", "UP TO", "EXPECTED", "STATE"]
    for zone in zones:
        if auto := zone["auto"]:
            expected = "-" if auto["expected"] is None else f"{auto['expected'] / 10:.1f} %"
            state = auto["error"] or ("idle" if auto["idle"] else "held")
            bounds, slowdown = f"{auto['lowest']} to {auto['highest']}", f"{auto['slowdown'] / 10:.1f} %"
            yield [zone["name"], f"{zone['percent']}", bounds, slowdown, expected, state]


def _histogram(zone: ZoneStats) -> Iterator[str]:
    """A line for each bucket between the first and the last that have any."""
    counts = zone["histogram"]
    used = [index for index, count in enumerate(counts) if count]
    if not used:
        yield f"{zone['name']}: no page faults answered"
        return
    yield f"{zone['name']}: page faults by the time until they were answered"
    most, last = max(counts), len(counts) - 1
    rows = []
    for index in range(used[0], used[-1] + 1):
        count = counts[index]
        label = "longer" if index == last else f"< {_time(2**index / 4)}"
        rows.append((label, str(count), "#" * max(BAR * count // most, 1 if count else 0)))
    labels, numbers = (max(len(row[column]) for row in rows) for column in (0, 1))
    for label, number, bar in rows:
        yield f"  {label.rjust(labels)}  {number.rjust(numbers)}  {bar}".rstrip()


def _time(microseconds: float) -> str:
    """For people: three digits and a unit."""
    for least, unit in _UNITS:
        if microseconds >= least or least == 1:
            value = microseconds / least
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    raise AssertionError


def _mebibytes(count: int) -> str:
    return f"{count / MIB:.1f} MiB"
