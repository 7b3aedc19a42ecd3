"""``vambrace owner``: the identity that images name, and that verdicts and percentages are signed with."""

from __future__ import annotations

import argparse

from vambrace.cli.output import Output
from vambrace.cli.parser import Commands
from vambrace.suite import NIST, SUITES


def add(commands: Commands) -> None:
    group = commands.group("owner", "your identity as an owner of Realms")
    create = group.add("create", "make your key and certificate", _create, "vambrace owner create --name 'Ward 7'")
    create.add_argument("--name", default="vambrace owner", help="the certificate's subject")
    create.add_argument("--suite", choices=list(SUITES), default=NIST.name, help="of which suite (default: nist)")
    group.add("show", "print your certificate", _show, "vambrace owner show > owner.pem")


def _create(options: argparse.Namespace, output: Output) -> int:
    from vambrace.attest.owner import KEY_FILE, OwnerIdentity
    from vambrace.client.context import Context
    from vambrace.errors import ConfigError

    directory = Context().owner
    if (directory / KEY_FILE).exists():
        hint = "'vambrace owner show' prints its certificate; for another one, VAMBRACE_HOME names another place"
        raise ConfigError(f"you have a key already, in {directory}", hint=hint)
    owner = OwnerIdentity.create(directory, options.name, suite=SUITES[options.suite])
    personalization = owner.personalization().hex()
    output.result(
        {
            "certificate": str(owner.certificate_path),
            "suite": owner.suite.name,
            "personalization": personalization,
        },
        [f"certificate: {owner.certificate_path}", f"keep the key beside it safe: {owner.key_path}"],
    )
    return 0


def _show(options: argparse.Namespace, output: Output) -> int:
    from vambrace.attest.owner import OwnerIdentity
    from vambrace.client.context import Context

    owner = OwnerIdentity.load(Context().owner)
    value = {
        "certificate": owner.certificate_pem,
        "channel": owner.channel_pem,
        "suite": owner.suite.name,
        "path": str(owner.certificate_path),
        "personalization": owner.personalization().hex(),
    }
    output.result(value, owner.published.splitlines())
    return 0
