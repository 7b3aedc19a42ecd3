"""``vambrace volume``: disks that outlive their Realms (docs/volumes.md)."""

from __future__ import annotations

import argparse

from vambrace.cli import session
from vambrace.cli.output import Output, moment, size, table
from vambrace.cli.parser import Commands, host_option


def add(commands: Commands) -> None:
    volumes = commands.group("volume", "disks that outlive their Realms")
    listing = volumes.add("list", "your volumes on a host", _list, "vambrace volume list")
    listing.add_argument("--all", action="store_true", help="those of other owners, too")
    create = volumes.add("create", "make one before its first Realm does", _create, "vambrace volume create records 1G")
    remove = volumes.add("remove", "remove one, with all that is in it", _remove, "vambrace volume remove records")
    remove.add_argument("--owner", metavar="VALUE", help="another owner's, by its personalization value")
    for parser in (create, remove):
        parser.add_argument("name", metavar="NAME")
    create.add_argument("size", metavar="SIZE", help="as in the manifest, for example 1G")
    for parser in (listing, create, remove):
        host_option(parser)


def _own() -> str:
    from vambrace.attest.owner import OwnerIdentity

    return OwnerIdentity.load(session.open_context().owner).personalization().hex()


def _list(options: argparse.Namespace, output: Output) -> int:
    found = session.open_host(options, session.open_context()).volumes()
    if not options.all:
        own = _own()
        found = [volume for volume in found if volume.owner == own]
    rows = [["NAME", "SIZE", "TAKEN", "CHANGED", "DOMAIN", *(["OWNER"] if options.all else [])]]
    for volume in found:
        changed = moment(volume.changed)
        owner = [volume.owner] if options.all else []
        rows.append([volume.name, size(volume.size), size(volume.taken), changed, volume.domain or "-", *owner])
    output.result([volume.raw for volume in found], table(rows))
    return 0


def _create(options: argparse.Namespace, output: Output) -> int:
    from vambrace.image.manifest import parse_memory

    volume = session.open_host(options, session.open_context()).create_volume(
        _own(), options.name, parse_memory(options.size)
    )
    output.result(volume.raw, [f"volume {volume.name}: {size(volume.size)}"])
    return 0


def _remove(options: argparse.Namespace, output: Output) -> int:
    owner = options.owner or _own()
    session.open_host(options, session.open_context()).remove_volume(owner, options.name)
    output.result({"owner": owner, "name": options.name}, [f"volume {options.name} is removed"])
    return 0
