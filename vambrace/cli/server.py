"""``vambrace server``: the emulated ARM server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vambrace.cli.output import Output
from vambrace.cli.parser import Commands, hexadecimal, port
from vambrace.cli.session import emulated_host
from vambrace.suite import NIST, SUITES

if TYPE_CHECKING:
    from vambrace.emulator.server import Access, Server


def add(commands: Commands) -> None:
    group = commands.group("server", "the emulated ARM server on this machine")
    build = group.add("build", "build firmware, host and reference values", _build, "vambrace server build")
    up = group.add("up", "start it, and make it the current host", _up, "vambrace server up")
    factory = group.add("factory", "provision a new machine once, and lock it", _factory, "vambrace server factory")
    factory.add_argument("--unlocked", action="store_true", help="leave it not provisioned: its tokens are refused")
    renew = group.add("renew", "have the vendor certify the platform's key anew", _renew, "vambrace server renew")
    revoke = group.add("revoke", "have the vendor revoke its certificates, for ever", _revoke, "vambrace server revoke")
    words = "open the machine for debugging, or destroy its keys: FOR EVER"
    revoke.add_argument("--instance", type=hexadecimal(33), metavar="HEX", help="which machine, as its tokens name it")
    retire = group.add("retire", words, _retire, "vambrace server retire decommissioned --for-ever")
    retire.add_argument("state", choices=("debug", "decommissioned"))
    retire.add_argument("--for-ever", action="store_true", help="nothing brings the machine back; say that you know")
    down = group.add("down", "stop it", _down, "vambrace server down")
    status = group.add("status", "whether it runs and answers", _status, "vambrace server status --json")
    reset = group.add("reset", "stop it and erase its state, its fuse included", _reset, "vambrace server reset")
    dump = group.add("dump", "write its physical memory to a file", _dump, "vambrace server dump memory.bin")
    dump.add_argument("file", type=Path)
    for parser in (build, up, factory, renew, revoke, retire, down, status, reset, dump):
        parser.add_argument("--suite", choices=list(SUITES), default=NIST.name, help="the server of this suite")
    for parser in (build, up, factory):
        parser.add_argument("--newer", action="store_true", help="take newer packages where the recorded are gone")
    for parser in (build, up, factory, renew, revoke):
        parser.add_argument(
            "--insecure-no-trustzone", action="store_true", help="without TrustZone: its tokens PROVE NOTHING"
        )
    factory.add_argument("--port", type=port, default=0, help="TCP port of the API (or VAMBRACE_PORT; 8443)")
    up.add_argument("--cold", action="store_true", help="do not resume the saved state")
    up.add_argument("--devices", action="store_true", help="with an NVMe disk and a network card for domains")
    reached = "TCP port here that Realms reach as 10.0.2.100:8444 (8444)"
    up.add_argument("--broker", type=port, default=0, metavar="PORT", help=reached)
    up.add_argument("--port", type=port, default=0, help="TCP port of the API (or VAMBRACE_PORT; 8443)")


def _server(options: argparse.Namespace) -> Server:
    from vambrace.emulator.qemu import BROKER
    from vambrace.emulator.server import Server

    insecure = getattr(options, "insecure_no_trustzone", False)
    newer = getattr(options, "newer", False)
    devices = getattr(options, "devices", False)
    broker = getattr(options, "broker", 0) or BROKER[1]
    return Server(
        port=getattr(options, "port", 0),
        insecure=insecure,
        suite=SUITES[options.suite],
        newer=newer,
        devices=devices,
        broker=broker,
    )


def _check_qemu() -> None:
    """The build needs QEMU too, but late: what is missing is said before anything long."""
    from vambrace.emulator.qemu import program

    program()


def _build(options: argparse.Namespace, output: Output) -> int:
    _check_qemu()
    server = _server(options)
    server.build(output.progress)
    folder = server.published.directory
    output.result({"published": str(folder)}, [f"reference values are in {folder}"])
    return 0


def _up(options: argparse.Namespace, output: Output) -> int:
    _check_qemu()
    access = _server(options).up(output.progress, cold=options.cold)
    name = _add_host(access, options)
    output.result({"host": name, "url": access.url}, [f"up at {access.url}; it is the current host"])
    return 0


def _factory(options: argparse.Namespace, output: Output) -> int:
    _check_qemu()
    access = _server(options).factory(output.progress, lock=not options.unlocked)
    name = _add_host(access, options)
    state = "not locked: its tokens prove nothing" if options.unlocked else "locked"
    output.result({"host": name, "url": access.url, "locked": not options.unlocked}, [f"provisioned, and {state}"])
    return 0


def _renew(options: argparse.Namespace, output: Output) -> int:
    _server(options).renew(output.progress)
    output.result({"renewed": True}, ["the platform has a new certificate"])
    return 0


def _retire(options: argparse.Namespace, output: Output) -> int:
    from vambrace.errors import UsageError

    if not options.for_ever:
        raise UsageError(f"a machine that is {options.state} stays so", hint="say --for-ever if that is meant")
    _server(options).retire(options.state, output.progress)
    output.result({"lifecycle": options.state}, [f"the machine is {options.state} for ever"])
    return 0


def _add_host(access: Access, options: argparse.Namespace) -> str:
    """Make the server the current host; its name."""
    from vambrace.client.context import Context, HostEntry

    entry = HostEntry(
        url=access.url,
        certificate=str(access.certificate),
        key=str(access.key),
        ca=str(access.ca),
        vendor_root=str(access.vendor_root),
        references=str(access.references),
        revocation_list=str(access.revocation_list),
    )
    name = emulated_host(options.suite)
    Context().add_host(name, entry)
    return name


def _revoke(options: argparse.Namespace, output: Output) -> int:
    server = _server(options)
    revoked = server.revoke(options.instance)
    path = server.published.revocation_list
    output.result({"revoked": revoked, "list": str(path)}, [f"{revoked} certificates revoked; the list is {path}"])
    return 0


def _down(options: argparse.Namespace, output: Output) -> int:
    output.progress("stopping the server")
    stopped = _server(options).down()
    output.result({"stopped": stopped}, ["stopped" if stopped else "it was not running"])
    return 0


def _status(options: argparse.Namespace, output: Output) -> int:
    from vambrace.errors import ServerError

    output.progress("asking the server")
    status = _server(options).status()
    state = "running" if status["running"] else "not running"
    lines = [state + (f" at {status['url']}" if "url" in status else "")]
    if fuse := status.get("fuse"):
        oldest = f"starts no firmware below version {fuse['firmware-version']}, no host below {fuse['host-version']}"
        lines.append(f"life cycle: {fuse['lifecycle']}; {oldest}")
    if status["running"]:
        lines.append("its API answers" if status["answers"] else f"its API does not answer: {status.get('error')}")
    output.result(status, lines)
    return 0 if status["answers"] else ServerError.exit_code


def _reset(options: argparse.Namespace, output: Output) -> int:
    output.progress("stopping the server and erasing its state")
    _server(options).reset()
    output.result({"reset": True}, ["its state is erased; the build stays"])
    return 0


def _dump(options: argparse.Namespace, output: Output) -> int:
    output.progress("writing the memory")
    written = _server(options).dump(options.file)
    output.result({"file": str(options.file), "bytes": written}, [f"{written >> 20} MiB written to {options.file}"])
    return 0
