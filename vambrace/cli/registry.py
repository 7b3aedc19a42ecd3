"""``vambrace image push`` and ``pull``: bundles in OCI registries, and who has signed them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vambrace.cli.output import Output, size, table
from vambrace.cli.parser import Commands

if TYPE_CHECKING:
    from vambrace.attest.suites import PublicKey
    from vambrace.image import Bundle
    from vambrace.image.registry import Check
    from vambrace.image.remote_signatures import Signature
    from vambrace.image.skopeo import Skopeo

PREFIX = "docker://"


def add(group: Commands) -> None:
    push = group.add(
        "push",
        "send a bundle to a registry, with its signatures",
        _push,
        "vambrace image push patients.vambrace docker://registry.example.org/patients:1 --sign owner/key.pem",
    )
    push.add_argument("bundle", type=Path)
    push.add_argument("reference", metavar="docker://REGISTRY/NAME:TAG")
    push.add_argument("--sign", type=Path, metavar="KEY", help="sign it as cosign does, with this private key (PEM)")
    pull = group.add(
        "pull",
        "fetch a bundle from a registry, once its signature is verified",
        _pull,
        "vambrace image pull docker://registry.example.org/patients:1 --key owner.pem",
    )
    pull.add_argument("reference", metavar="docker://REGISTRY/NAME:TAG")
    pull.add_argument("-o", "--output", type=Path, help="the bundle (default: its name + .vambrace)")
    trust = pull.add_mutually_exclusive_group()
    trust.add_argument("--key", type=Path, metavar="FILE", help="who must have signed it: public key or certificate")
    trust.add_argument("--policy", type=Path, metavar="FILE", help="what must hold, see containers-policy.json(5)")
    trust.add_argument("--unverified", action="store_true", help="take it whoever made it")
    for parser in (push, pull):
        registry_options(parser)


def registry_options(parser: argparse.ArgumentParser) -> None:
    """skopeo's own, for who does not like its defaults."""
    group = parser.add_argument_group("registry")
    group.add_argument("--authfile", type=Path, metavar="FILE", help="credentials (default: those of 'skopeo login')")
    group.add_argument("--cert-dir", type=Path, metavar="DIR", help="the registry's CA, and a client's certificate")
    verify = argparse.BooleanOptionalAction
    group.add_argument("--tls-verify", action=verify, default=None, help="whether the registry must prove itself")


def skopeo_of(options: argparse.Namespace) -> Skopeo:
    from vambrace.image.skopeo import Skopeo

    return Skopeo(options.authfile, options.cert_dir, options.tls_verify, getattr(options, "policy", None))


def _push(options: argparse.Namespace, output: Output) -> int:
    from vambrace.attest.cosign import sign_manifest
    from vambrace.attest.image import load_key
    from vambrace.image import Bundle
    from vambrace.image.registry import push
    from vambrace.image.remote_images import Reference

    reference = Reference.parse(options.reference)
    key = load_key(options.sign) if options.sign else None
    bundle = Bundle.open(options.bundle)
    # With its tag: policies accept a signature for what was asked for, and for no other tag.
    named = f"{reference.name}:{reference.tag}"
    signatures = [sign_manifest(key, bundle.manifest_digest, named)] if key else []
    lines = ["with the signature of a platform's owner"] if bundle.signature else []
    lines += ["signed with this key"] if key else []
    output.progress("sending")
    exactly = push(bundle, reference, skopeo_of(options), signatures)
    output.result(
        {"reference": str(reference), "digest": f"sha256:{exactly.digest}", "signed": bool(key)},
        [str(exactly), *lines],
    )
    return 0


def _pull(options: argparse.Namespace, output: Output) -> int:
    from vambrace.attest.image import load_public_key
    from vambrace.errors import UsageError
    from vambrace.image.registry import pull
    from vambrace.image.remote_images import Reference, look

    reference = Reference.parse(options.reference)
    if not (options.key or options.policy or options.unverified or reference.digest):
        raise UsageError(
            "who must have signed it is not said", hint="--key or --policy; its digest (name@sha256:…); or --unverified"
        )
    key = load_public_key(options.key) if options.key else None
    skopeo = skopeo_of(options)
    output.progress("looking")
    image = look(reference, skopeo)
    path = options.output or Path(reference.name.rpartition("/")[2] + ".vambrace")
    output.progress(f"fetching {size(image.size)}")
    bundle = pull(image, path, skopeo, checker(key) if key else None)
    verified = "signature" if key else "policy" if options.policy else "digest" if reference.digest else None
    lines = [f"{path}: {image.exactly}"]
    lines.append(f"verified by its {verified}" if verified else "NOT verified: anybody may have made it")
    value = {"bundle": str(path), "digest": f"sha256:{image.digest}", "verified": verified}
    if bundle.config.kind.measured:
        output.progress("measuring")
        value["measurement"] = bundle.measurement().hex()
        lines.append(f"measurement: {value['measurement']}")
    output.result(value, lines)
    return 0


def checker(key: PublicKey) -> Check:
    """What raises ``SignatureInvalid`` for a bundle that the owner of ``key`` has not signed, neither what it measures
    as nor its manifest."""
    from vambrace.attest.cosign import verify_manifest
    from vambrace.attest.image import ImageStatement, verify_image
    from vambrace.attest.suites import spki
    from vambrace.errors import MessageRefused, SignatureInvalid

    def check(bundle: Bundle, signatures: Sequence[Signature]) -> None:
        config = bundle.config
        # Somebody else's signature is no reason to refuse: there may be another.
        if bundle.signature is not None and config.kind.measured:
            wanted = ImageStatement.of(config.kind.name, config.hash, bundle.measurement(), config.encode())
            with contextlib.suppress(MessageRefused):
                if verify_image(bundle.signature.read(), spki(key)) == wanted:
                    return
        for payload, signature in signatures:
            with contextlib.suppress(SignatureInvalid):
                verify_manifest(key, bundle.manifest_digest, payload, signature)
                return
        count = len(signatures) + (bundle.signature is not None)
        raise SignatureInvalid(
            f"none of the image's {count} signatures is by this key" if count else "the image has no signature",
            hint="have it signed: 'vambrace image push --sign', or 'vambrace image sign' before it",
        )

    return check


def inspect_remote(options: argparse.Namespace, output: Output) -> int:
    """What a registry says that it holds: nothing of it is verified but digests."""
    from vambrace.image.remote_images import Reference, configuration, look
    from vambrace.image.remote_signatures import signers

    skopeo = skopeo_of(options)
    image = look(Reference.parse(options.bundle), skopeo)
    config = configuration(image, skopeo)
    owners, others = signers(image, skopeo)
    parts = [["part", "size", "sha256"], *([blob.title, size(blob.size), blob.digest] for blob in image.blobs)]
    described = config.as_object()
    described.pop("owner", None)
    value: dict[str, Any] = {
        "reference": str(image.exactly),
        "digest": f"sha256:{image.digest}",
        "name": config.name,
        "class": config.kind.name,
        "signatures": {"owner": owners, "cosign": others},
        "parts": [{"title": blob.title, "sha256": blob.digest, "size": blob.size} for blob in image.blobs],
        "config": described,
    }
    lines = [
        f"name        {config.name} ({config.kind}{', DEBUG: not confidential' if config.debug else ''})",
        f"reference   {image.exactly}",
        f"signatures  {int(owners)} of a platform's owner, {others} of cosign's form; 'image pull --key' verifies them",
        "",
        *table(parts),
        "",
        *(application.described for application in config.applications),
    ]
    output.result(value, lines)
    return 0
