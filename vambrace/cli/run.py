"""``vambrace run``: the main job, from a manifest or bundle to the results and the Realm's end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vambrace.cli import session
from vambrace.cli.image import build_image, default_bundle
from vambrace.cli.output import Output
from vambrace.cli.parser import Commands, hexadecimal, host_option, policy_options

if TYPE_CHECKING:
    from vambrace.client.attested import Attested
    from vambrace.client.domain import Domain
    from vambrace.client.realm import Realm
    from vambrace.client.secure import SecureVm

MANIFESTS = (".yaml", ".yml")
LATE_SECONDS = 2.0


def add(commands: Commands) -> None:
    parser = commands.add(
        "run",
        "start a domain: build if needed; verify a Realm's token, approve, follow it, take its results",
        _run,
        "vambrace run examples/patients/manifest.yaml --results out",
    )
    parser.add_argument("image", type=Path, metavar="MANIFEST_OR_BUNDLE")
    parser.add_argument("--name", help="the Realm's name (default: that in the image)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where results go (default: NAME-results)")
    parser.add_argument("--detach", action="store_true", help="return as soon as its applications were started")
    parser.add_argument(
        "--measurement",
        type=hexadecimal(32),
        metavar="HEX",
        help="the launch measurement to insist on (default: computed from the image)",
    )
    parser.add_argument("--newer", action="store_true", help="take newer packages where the recorded are gone")
    host_option(parser)
    policy_options(parser)


class Lines:
    """Puts the output of several applications together, line by line."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rests: dict[str, bytes] = {}

    def __call__(self, application: str, data: bytes) -> None:
        whole, newline, rest = (self._rests.get(application, b"") + data).rpartition(b"\n")
        self._rests[application] = rest
        if newline:
            self._output.raw(whole + newline, f"{application} | ")

    def end(self) -> None:
        for application, rest in self._rests.items():
            if rest:
                self._output.raw(rest, f"{application} | ")


def _run(options: argparse.Namespace, output: Output) -> int:
    from vambrace.client.normal import NormalVm
    from vambrace.client.realm import Realm
    from vambrace.client.secure import SecureVm
    from vambrace.image.bundle import Bundle
    from vambrace.image.manifest import read_manifest

    context = session.open_context()
    host = session.open_host(options, context)  # what is missing is said before anything long
    bundle: Path = options.image
    manifest = bundle.suffix in MANIFESTS
    kind = read_manifest(bundle).kind if manifest else Bundle.open(bundle).config.kind
    trust = session.open_trust(options, context) if kind.attested else None
    if manifest:
        bundle = default_bundle(options.image)
        build_image(options.image, bundle, output.progress, newer=options.newer)
    if not kind.attested:
        with NormalVm.create(bundle, host=host, context=context, name=options.name, progress=output.progress) as normal:
            return _leave(normal, output)
    its: type[Attested] = Realm if kind.verdict else SecureVm
    attested = its.create(
        bundle,
        host=host,
        trust=trust,
        context=context,
        name=options.name,
        expected=options.measurement,
        progress=output.progress,
    )
    with attested as domain:
        if isinstance(domain, SecureVm):
            return _secure(domain, output)
        assert isinstance(domain, Realm)
        return _realm(domain, options, output)


def _tell_clock(domain: Attested, output: Output) -> dict[str, Any]:
    """Who holds back the message that sets it makes it late."""
    late = domain.clock_late
    if late > LATE_SECONDS:
        output.say(f"its clock may be {late:.0f} s late: the way to it is slow, or somebody delays what goes there")
    return {"clock_late_seconds": round(late, 3)}


def _leave(domain: Domain, output: Output, value: dict[str, Any] | None = None) -> int:
    """What does not end by itself is left running."""
    from vambrace.client.attested import Attested

    domain.start(output.progress)
    clock = _tell_clock(domain, output) if isinstance(domain, Attested) else {}
    domain.detach()
    name = domain.state.name
    described = {"uuid": domain.uuid, "name": name, "class": domain.config.kind.name, "state": "running"}
    lines = [f"{domain.config.kind} {name} ({domain.uuid}) runs; 'vambrace destroy {name}' ends it"]
    if domain.config.console:
        lines.append(f"'vambrace console {name}' is its console")
    output.result(described | (value or {}) | clock, lines)
    return 0


def _secure(domain: SecureVm, output: Output) -> int:
    output.say(f"expected measurement  {domain.state.measurement}")
    verified = domain.verify(output.progress)
    output.say(f"token's measurement   {verified.measurement.hex()}: verified")
    measurement = {"expected": domain.state.measurement, "token": verified.measurement.hex()}
    return _leave(domain, output, {"measurement": measurement, "verification": verified.as_dict()})


def _realm(realm: Realm, options: argparse.Namespace, output: Output) -> int:
    from vambrace.errors import VerificationError

    with realm:
        output.say(f"Realm {realm.state.name} ({realm.uuid})")
        output.say(f"expected measurement  {realm.state.measurement}")
        try:
            verified = realm.verify(output.progress)
        except VerificationError:
            output.say("the token is not to be trusted: refused")
            raise
        output.say(f"token's measurement   {verified.measurement.hex()}: verified")
        realm.approve()
        realm.start(output.progress)
        output.say("approved and started")
        clock = _tell_clock(realm, output)
        value: dict[str, Any] = {
            "uuid": realm.uuid,
            "name": realm.state.name,
            "class": realm.config.kind.name,
            "state": "running",
            "measurement": {"expected": realm.state.measurement, "token": verified.measurement.hex()},
            "verification": verified.as_dict(),
            **clock,
        }
        if options.detach:
            realm.detach()
            output.result(value, [f"follow it with 'vambrace logs {realm.uuid[:8]} --follow'"])
            return 0
        value |= _follow(realm, options, output)
    lines = [f"succeeded and destroyed; results in {value['results']}" if value["results"] else "succeeded"]
    output.result(value, lines)
    return 0


def _follow(realm: Realm, options: argparse.Namespace, output: Output) -> dict[str, Any]:
    expects = any(application.results for application in realm.config.applications)
    directory: Path | None = options.results or (Path(f"{realm.state.name}-results") if expects else None)
    lines = None if output.json_mode else Lines(output)
    try:
        info = realm.finish(directory, on_log=lines, progress=output.progress)
    finally:
        if lines:
            lines.end()
    return {"state": info.state, "results": str(directory) if directory else None}
