"""Realms that are there: ``ps``, ``encrypt``, ``stats``, ``logs``, ``results``, ``destroy``."""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path

from vambrace.cli import session, stats
from vambrace.cli.output import Output, moment, size, table
from vambrace.cli.parser import Commands, host_option, percent, policy_options


def add(commands: Commands) -> None:
    ps = commands.add("ps", "list the domains of a host", _ps, "vambrace ps --all")
    ps.add_argument("--all", action="store_true", help="those that have ended, too")
    encrypt = commands.add(
        "encrypt", "set how much of an application's memory is encrypted", _encrypt,
        "vambrace encrypt patients --app analysis 95",
    )  # fmt: skip
    zones = commands.add("stats", "memory and encryption of each zone", _stats, "vambrace stats patients --histogram")
    logs = commands.add("logs", "output of the applications", _logs, "vambrace logs patients --follow")
    results = commands.add(
        "results",
        "list the results, or take them",
        _results,
        "vambrace results patients --to out --collected",
    )
    stop = commands.add(
        "stop", "ask the applications to end, by their stop signals", _stop, "vambrace stop patients --app analysis"
    )
    destroy = commands.add("destroy", "end a domain now", _destroy, "vambrace destroy patients")
    for parser in (ps, encrypt, zones, logs, results, stop, destroy):
        host_option(parser)
    for parser in (encrypt, zones, logs, results, stop, destroy):
        parser.add_argument("realm", metavar="REALM", help="name, identifier, or the beginning of one")
    for parser in (encrypt, zones, logs, results, stop):
        policy_options(parser)
    encrypt.add_argument("--app", required=True, metavar="NAME", help="the application, or 'system'")
    encrypt.add_argument("percent", type=percent, metavar="PERCENT", help="0 to 100")
    zones.add_argument("--histogram", action="store_true", help="how long page faults took to be answered, too")
    logs.add_argument("--app", metavar="NAME", help="this application only")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until they have ended")
    stop.add_argument("--app", metavar="NAME", help="this application only")
    results.add_argument("--to", type=Path, metavar="DIR", help="take them, into this directory")
    results.add_argument("--collected", action="store_true", help="afterwards let the Realm end")


def _ps(options: argparse.Namespace, output: Output) -> int:
    realms = session.open_host(options, session.open_context()).domains()
    shown = [realm for realm in realms if options.all or not realm.final]
    rows = [["NAME", "CLASS", "DOMAIN", "STATE", "AGENT", "MEMORY", "STARTED", "REASON"]]
    for realm in shown:
        started, agent = moment(realm.created), "" if realm.final else realm.agent
        reason = realm.reason + ("; never executed" if realm.final and not realm.executed else "")
        rows.append([realm.name, realm.kind, realm.uuid, realm.state, agent, size(realm.memory), started, reason])
    output.result([realm.raw for realm in shown], table(rows))
    return 0


def _encrypt(options: argparse.Namespace, output: Output) -> int:
    with session.open_realm(options) as realm:
        output.progress("connecting")
        realm.encrypt(options.app, options.percent, output.progress)
        name = realm.state.name
    value = {"realm": realm.uuid, "application": options.app, "percent": options.percent}
    output.result(value, [f"{name}: {options.app} is at {options.percent} %"])
    return 0


def _stats(options: argparse.Namespace, output: Output) -> int:
    with session.open_realm(options) as realm:
        output.progress("connecting")
        zones, traffic = realm.stats(), realm.messages()
    lines = [*stats.lines(zones, histogram=options.histogram), *stats.traffic_lines(traffic)]
    output.result({"realm": realm.uuid, "zones": zones, "endpoints": traffic}, lines)
    return 0


def _logs(options: argparse.Namespace, output: Output) -> int:
    with session.open_attested(options) as realm:
        known = [application.name for application in realm.config.applications]
        wanted = [options.app] if options.app else known
        for name in wanted:
            realm.check_application(name)
        offsets = dict.fromkeys(wanted, 0)
        texts: dict[str, bytearray] = {name: bytearray() for name in wanted}
        output.progress("connecting")
        while offsets:
            idle = True
            for name in list(offsets):
                offset, data, done = realm.logs(name, offsets[name])
                idle = idle and not data
                if output.json_mode:
                    texts[name] += data
                elif data:
                    output.raw(data, f"{name} | " if len(wanted) > 1 else "")
                offsets[name] = offset
                if not data and (done or not options.follow):
                    del offsets[name]
            if idle and offsets:
                time.sleep(1)
    if output.json_mode:
        value = {name: text.decode(errors="replace") for name, text in texts.items()}
        output.result({"realm": realm.uuid, "logs": value}, [])
    else:
        output.end_progress()
    return 0


def _results(options: argparse.Namespace, output: Output) -> int:
    with session.open_attested(options) as realm:
        output.progress("connecting")
        found = realm.results()
        paths = realm.download(options.to, output.progress) if options.to else []
        if options.collected:
            realm.collected()
    files = [{"application": file.application, "path": file.path, "size": file.size} for file in found]
    rows = [
        ["APPLICATION", "SIZE", "PATH"],
        *([file.application, size(file.size), file.path] for file in found),
    ]
    lines = [str(path) for path in paths] if options.to else table(rows)
    if options.collected:
        lines.append("the Realm ends")
    output.result({"realm": realm.uuid, "results": files, "files": [str(path) for path in paths]}, lines)
    return 0


def _stop(options: argparse.Namespace, output: Output) -> int:
    with session.open_realm(options) as realm:
        output.progress("connecting")
        realm.stop(options.app or "")
    which = options.app or "every application"
    output.result({"stopping": options.app or ""}, [f"{which} was asked to end; 'vambrace ps' tells of the Realm"])
    return 0


def _destroy(options: argparse.Namespace, output: Output) -> int:
    from vambrace.client import names
    from vambrace.errors import NotFound

    context = session.open_context()
    host = session.open_host(options, context)
    uuid = names.resolve(options.realm, context, host, foreign=True)
    output.progress("destroying")
    with contextlib.suppress(NotFound):
        host.destroy(uuid)
    info = host.wait(uuid, lambda info: info.final, timeout=120, progress=output.progress)
    is_now = "is destroyed" if info.state == "destroyed" else f"had ended: {info.state}"
    output.result(info.raw, [f"{info.name} {is_now}" + ("" if info.executed else "; it never executed")])
    return 0
