"""``vambrace verify``: judge a token offline, from files alone; ``vambrace verifier serve``: the same over HTTP."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vambrace.cli import session
from vambrace.cli.attest import describe, read_file
from vambrace.cli.output import Output
from vambrace.cli.parser import Commands, hexadecimal, policy_options
from vambrace.errors import UsageError

if TYPE_CHECKING:
    from vambrace.attest.appraisal import Appraisal
    from vambrace.attest.policy import Policy


def add(commands: Commands) -> None:
    verify = commands.add(
        "verify",
        "verify a token offline: of a Realm, or of Arm CCA hardware",
        _verify,
        "vambrace verify token.cbor --root vendor-root.pem --references reference-values.corim \\\n"
        "    --bundle patients.vambrace --nonce HEX",
    )
    verify.add_argument("token", type=Path, help="the token's file ('vambrace token show REALM --save FILE')")
    asked = verify.add_mutually_exclusive_group(required=True)
    asked.add_argument("--nonce", type=hexadecimal(32), metavar="HEX", help="the nonce you chose for the start")
    asked.add_argument("--challenge", type=hexadecimal(64), metavar="HEX", help="the challenge itself, of any token")
    known = verify.add_argument_group("what you trust; each may be given several times")
    known.add_argument("--root", type=Path, action="append", default=[], metavar="FILE",
                       help="a vendor's root certificate (PEM)")  # fmt: skip
    known.add_argument("--references", type=Path, action="append", default=[], metavar="FILE",
                       help="reference values and endorsements (signed CoRIM)")  # fmt: skip
    known.add_argument("--crl", type=Path, action="append", default=[], metavar="FILE",
                       help="a vendor's revocation list")  # fmt: skip
    known.add_argument("--signer", type=Path, action="append", default=[], metavar="FILE",
                       help="a public key (PEM) whose CoRIMs you believe without a certificate")  # fmt: skip
    expected = verify.add_argument_group("what you expect, unless the policy or reference values say it")
    expected.add_argument("--bundle", type=Path, metavar="FILE", help="the image: gives measurement and owner")
    expected.add_argument("--measurement", type=hexadecimal(32, 48, 64), metavar="HEX", help="the launch measurement")
    expected.add_argument("--owner", type=Path, metavar="FILE", help="the owner's certificate (PEM)")
    policy_options(verify)
    result = verify.add_argument_group("a signed result, whatever the verdict")
    result.add_argument("--result", type=Path, metavar="FILE", help="write an EAT Attestation Result (JWT)")
    result.add_argument("--result-key", type=Path, metavar="FILE",
                        help="the key that signs it (PEM), made if it is not there")  # fmt: skip
    verifier = commands.group("verifier", "appraise evidence for others")
    serve = verifier.add("serve", "run the verifier over HTTP", _serve, "vambrace verifier serve verifier.toml")
    serve.add_argument("settings", type=Path, metavar="FILE", help="its settings (docs/verification.md)")


def _verify(options: argparse.Namespace, output: Output) -> int:
    from vambrace.attest.verify import accepted_token

    if bool(options.result) != bool(options.result_key):
        raise UsageError("--result and --result-key belong together", hint="give both")
    appraisal = _appraise(options, output)
    if options.result:
        _write_result(options, appraisal)
    for finding in appraisal.findings:
        if finding.error not in (None, appraisal.error):
            output.say(f"also: {finding.reason}")
    verified = accepted_token(appraisal)
    findings = [f"{finding.attester}: {finding.reason}" for finding in appraisal.findings]
    output.result(
        {**verified.as_dict(), "findings": findings},
        ["verified", *describe({**verified.as_dict(), "findings": findings}, "  ")],
    )
    return 0


def _appraise(options: argparse.Namespace, output: Output) -> Appraisal:
    from vambrace.attest.anchors import read_anchors
    from vambrace.attest.appraisal import appraise
    from vambrace.attest.challenge import launch_challenge
    from vambrace.attest.token import decode_evidence

    if not (options.bundle or options.policy or options.signer or (options.measurement and options.owner)):
        raise UsageError(
            "what is expected is not given", hint="give --bundle, --policy, or --measurement and --owner"
        )
    policy = session.open_policy(options)
    expected = _expected(options, output)
    output.progress("verifying")
    # What the policy demands of revocation is a matter of the appraisal, so that a refusal has its result.
    anchors = read_anchors(roots=options.root, corims=options.references, lists=options.crl, signers=options.signer)
    token = read_file(options.token)
    challenge = options.challenge
    if not challenge:
        with session.reading_token():
            evidence = decode_evidence(token)
        challenge = launch_challenge(options.nonce, evidence.realm.instance, evidence.suite)
    return appraise(
        token,
        anchors=anchors,
        policy=_with(policy, expected),
        challenge=challenge,
        expected_measurement=expected.measurement,
        expected_owner=expected.owner,
    )


class _Expected(NamedTuple):
    measurement: bytes | None
    owner: bytes | None
    hash_algorithm: str | None
    cache_required: bool


def _expected(options: argparse.Namespace, output: Output) -> _Expected:
    from vambrace.certificate import owner_public_key, owner_suite, personalization
    from vambrace.image.certificates import read_owner

    measurement, owner, algorithm, cache = options.measurement, None, None, None
    if options.bundle:
        from vambrace.image import Bundle

        output.progress("checking the image")
        bundle = Bundle.open(options.bundle)
        output.progress("measuring")
        measurement = measurement or bundle.measurement()
        owner, algorithm, cache = bundle.config.personalization(), bundle.config.hash, bundle.config.cache
    if options.owner:
        read_file(options.owner)  # which says it as other files' errors are said
        certificate, _ = read_owner(options.owner)
        owner = personalization(owner_public_key(certificate))
        algorithm = algorithm or owner_suite(certificate).hash
    return _Expected(measurement, owner, algorithm, bool(cache and cache.required))


def _with(policy: Policy, expected: _Expected) -> Policy:
    """The policy, made to fit what was given beside it: where it names no measurement, the expected one is accepted."""
    from vambrace.attest.policy import CACHE_DEMANDS

    if expected.measurement is not None and policy.measurements == frozenset():
        policy = replace(policy, measurements=frozenset({expected.measurement}))
    if expected.hash_algorithm is not None:
        policy = replace(policy, hash_algorithm=expected.hash_algorithm)
    if expected.cache_required:
        policy = replace(policy, cache_partitions=policy.cache_partitions & CACHE_DEMANDS["divided"])
    return policy


def _write_result(options: argparse.Namespace, appraisal: Appraisal) -> None:
    from vambrace.attest import ear
    from vambrace.attest.endorsement import load_or_make_key

    key = load_or_make_key(options.result_key)
    result = ear.sign_jwt(ear.claims_set(appraisal, nonce=options.nonce or options.challenge), key)
    try:
        options.result.write_text(result + "\n")
    except OSError as error:
        raise UsageError(f"{options.result} cannot be written: {error.strerror}", hint="choose another path") from error


def _serve(options: argparse.Namespace, output: Output) -> int:
    import asyncio
    import logging

    try:
        from vambrace.verifier.api import serve
    except ModuleNotFoundError as error:
        raise session.not_installed(error, "verifier") from None
    from vambrace.verifier.settings import load_settings

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = load_settings(options.settings)
    asyncio.run(serve(settings, lambda port: output.say(f"listening on {settings.listen}:{port}")))
    return 0
