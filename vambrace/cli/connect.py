"""``vambrace connect``: a published port of a Realm as a local port, for clients that know nothing of Realms."""

from __future__ import annotations

import argparse
import ipaddress
import re
import sys
from typing import TYPE_CHECKING

from vambrace.cli import session
from vambrace.cli.output import Output, printable
from vambrace.cli.parser import Commands, host_option, policy_options, port
from vambrace.errors import HostError, VambraceError

if TYPE_CHECKING:
    from vambrace.client.attested import Attested
    from vambrace.client.tunnel import Address, Told

#: Seconds between two looks whether the connection was cut: an interrupt comes through in between.
TICK = 1.0
_PLACE = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:/\[\]]*)):([0-9]{1,5})")


def add(commands: Commands) -> None:
    parser = commands.add(
        "connect",
        "a local port for a published port of a Realm, over a verified channel",
        _connect,
        "vambrace connect patients 5432 & psql -h 127.0.0.1 -p 5432",
    )
    parser.add_argument("realm", metavar="REALM")
    parser.add_argument("port", metavar="PORT", type=port, help="one that its manifest publishes")
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        type=address,
        help="where to listen (default: 127.0.0.1:PORT); port 0 is any that is free, a path is a Unix socket",
    )
    host_option(parser)
    policy_options(parser)


def address(text: str) -> Address:
    """``127.0.0.1:5432``, ``[::1]:5432``, ``:5432`` (the loopback), or a path with a slash."""
    if "/" in text:
        return text
    match = _PLACE.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no address with a port, as in 127.0.0.1:5432")
    return (match[1] or match[2] or "127.0.0.1", int(match[3]))


def _connect(options: argparse.Namespace, output: Output) -> int:
    def refused(error: VambraceError) -> None:
        print(f"vambrace: {printable(error.message)}", file=sys.stderr, flush=True)

    place: Address = options.listen or ("127.0.0.1", options.port)
    with session.open_attested(options) as realm:
        output.progress("asking for evidence")
        with realm.forward(options.port, place, refused) as forward:
            where = forward.address if isinstance(forward.address, str) else spelled(*forward.address)
            verified = realm.tunnel.realm
            assert verified is not None
            output.result(
                {"listen": where, "port": options.port, "realm": realm.uuid, **verified.as_dict()},
                [f"verified: {realm.config.name}, measurement {verified.measurement.hex()}"]
                + [f"listening at {where} for port {options.port} of it; Ctrl-C ends this"],
            )
            if isinstance(place, tuple) and not is_loopback(place[0]):
                print(f"vambrace: whoever reaches {where} speaks in your name", file=sys.stderr, flush=True)
            try:
                wait(realm, refused)
            except KeyboardInterrupt:
                output.end_progress()
    return 0


def wait(realm: Attested, told: Told) -> None:
    """Until the domain has ended: then that is raised. A connection that was cut is made anew with the next client."""
    cut = realm.tunnel.cut
    while True:
        if not cut.wait(TICK):
            continue
        cut.clear()
        try:
            info = realm.info()
        except HostError as error:
            told(error)
            continue
        if info.final:
            raise realm.ended(info)


def spelled(host: str, number: int) -> str:
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
