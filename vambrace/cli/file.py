"""``vambrace file``: files in and out of an application, over its attested channel (docs/volumes.md)."""

from __future__ import annotations

import argparse
from pathlib import Path

from vambrace.cli import session
from vambrace.cli.output import Output, moment, size, table
from vambrace.cli.parser import Commands, host_option, policy_options

_PLACE = "APPLICATION:PATH, below its results, /scratch or a volume; without a / below its results"


def add(commands: Commands) -> None:
    group = commands.group("file", "files in and out of an application")
    put = group.add("put", "send a file", _put, "vambrace file put patients data.csv analysis:/data/records/data.csv")
    put.add_argument("realm", metavar="REALM")
    put.add_argument("file", type=Path, metavar="FILE")
    put.add_argument("place", metavar="APPLICATION:PATH", help=_PLACE)
    get = group.add("get", "take a file", _get, "vambrace file get patients analysis:/scratch/out.csv")
    get.add_argument("realm", metavar="REALM")
    get.add_argument("place", metavar="APPLICATION:PATH", help=_PLACE)
    get.add_argument("file", type=Path, nargs="?", metavar="FILE", help="its name here (default: as there)")
    listing = group.add("list", "what is in a folder", _list, "vambrace file list patients analysis:/data/records")
    listing.add_argument("realm", metavar="REALM")
    listing.add_argument("place", metavar="APPLICATION:PATH", help=_PLACE)
    for parser in (put, get, listing):
        host_option(parser)
        policy_options(parser)


def _put(options: argparse.Namespace, output: Output) -> int:
    with session.open_attested(options) as realm:
        output.progress("connecting")
        sent = realm.put_file(options.file, options.place, output.progress)
    output.result({"realm": realm.uuid, "size": sent}, [f"{options.place}: {size(sent)}"])
    return 0


def _get(options: argparse.Namespace, output: Output) -> int:
    with session.open_attested(options) as realm:
        output.progress("connecting")
        path = realm.get_file(options.place, options.file, output.progress)
    output.result({"realm": realm.uuid, "file": str(path)}, [f"{path}: {size(path.stat().st_size)}"])
    return 0


def _list(options: argparse.Namespace, output: Output) -> int:
    with session.open_attested(options) as realm:
        output.progress("connecting")
        found, more = realm.list_files(options.place)
    rows = [["KIND", "SIZE", "CHANGED", "NAME"]]
    for file in sorted(found, key=lambda file: file.name):
        changed = moment(file.changed)
        rows.append([file.kind, size(file.size), changed, file.name])
    value = [{"name": each.name, "kind": each.kind, "size": each.size, "changed": each.changed} for each in found]
    lines = table(rows) + (["there is more: name a folder below"] if more else [])
    output.result({"realm": realm.uuid, "files": value, "more": more}, lines)
    return 0
