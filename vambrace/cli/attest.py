"""Evidence: ``attest`` (fresh, from a running Realm), ``token show``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vambrace.cli import session
from vambrace.cli.output import Output
from vambrace.cli.parser import Commands, host_option, policy_options


def add(commands: Commands) -> None:
    attest = commands.add("attest", "ask a running Realm for fresh evidence and verify it", _attest,
                          "vambrace attest patients")  # fmt: skip
    attest.add_argument("realm", metavar="REALM")
    attest.add_argument("--events", action="store_true", help="show what happened since the launch, as it is proven")
    host_option(attest)
    policy_options(attest)
    token = commands.group("token", "look at evidence without believing it")
    show = token.add("show", "decode a token; verifies nothing", _show, "vambrace token show patients")
    show.add_argument("token", metavar="FILE_OR_REALM", help="a token's file, or a Realm that was started from here")
    show.add_argument("--diagnostic", action="store_true", help="in CBOR diagnostic notation, all of it")
    show.add_argument("--save", type=Path, metavar="FILE", help="write the token to a file")
    host_option(show)


def describe(value: dict[str, Any], indent: str = "") -> list[str]:
    """A token's fields as indented lines."""
    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += [f"{indent}{key}:", *describe(item, indent + "  ")]
        elif isinstance(item, list):
            lines.append(f"{indent}{key}:")
            for entry in item:
                text = ", ".join(f"{k} {v}" for k, v in entry.items()) if isinstance(entry, dict) else str(entry)
                lines.append(f"{indent}  - {text}")
        else:
            shown = {True: "yes", False: "no"}.get(item, item) if isinstance(item, bool) else item
            lines.append(f"{indent}{key}: {shown}")
    return lines


def _attest(options: argparse.Namespace, output: Output) -> int:
    with session.open_attested(options) as realm:
        output.progress("asking for evidence")
        verified = realm.attest()
        found = verified.as_dict()
        if options.events:
            output.progress("replaying the log of events")
            found["events"] = [event.as_dict() for event in realm.events(verified)]
    output.result({"realm": realm.uuid, **found}, describe(found))
    return 0


def _show(options: argparse.Namespace, output: Output) -> int:
    from vambrace.attest.diagnostic import diagnostic
    from vambrace.attest.show import describe as describe_token

    state = None
    if Path(options.token).is_file():
        token = read_file(Path(options.token))
    else:
        from vambrace.client import names

        context = session.open_context()
        uuid = names.resolve(options.token, context, session.open_host(options, context))
        token, state = context.domain_file(uuid, "token.cbor"), context.domain(uuid)
    with session.reading_token():
        notation = diagnostic(token) if options.diagnostic else None
        value: dict[str, Any] = {"verified": False, "diagnostic": notation} if notation else describe_token(token)
    if options.save:
        _write(options.save, token)
    lines = ["NOT verified:", *(notation.splitlines() if notation else describe(value, "  "))]
    if state:
        # What an offline verification needs besides the token.
        value |= {"nonce": state.nonce, "expected-measurement": state.measurement}
        lines += [f"your nonce: {state.nonce}", f"expected measurement: {state.measurement}"]
    output.result(value, lines)
    return 0


def read_file(path: Path) -> bytes:
    from vambrace.errors import UsageError

    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error


def _write(path: Path, data: bytes) -> None:
    from vambrace.errors import UsageError

    new = not path.exists()
    try:
        path.write_bytes(data)
    except OSError as error:
        if new:
            path.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint="choose another path") from error
