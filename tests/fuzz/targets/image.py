"""Images that somebody sends: bundle, its JSON under digests that are right, certificate, kernel."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from client_harness import make_bundle
from config_factory import make_kernel, make_realm, owner
from jsons import edited
from script import Script, demand

from vambrace.attest.chain import UNREADABLE
from vambrace.attest.owner import OwnerIdentity
from vambrace.canonical import canonical
from vambrace.certificate import certificate_der, certificate_pem, owner_public_key
from vambrace.client.channel import public_key
from vambrace.config import DomainConfig
from vambrace.errors import ConfigError, ImageError, MalformedEvidence
from vambrace.image import Bundle
from vambrace.machine.kernel import parse_image
from vambrace.machine.plan import plan_boot

FOLDER = Path(tempfile.mkdtemp())
FILE = FOLDER / "fuzzed"
ENCODED = make_realm(("analysis", "report")).encode()
KERNEL = make_kernel(64 << 10)
DER = certificate_der(owner()[0])
PEM = owner()[0].encode()
with tarfile.open(make_bundle(FOLDER, OwnerIdentity.create(FOLDER / "owner")).path) as _tar:
    MEMBERS = {member.name: _tar.extractfile(member).read() for member in _tar}  # type: ignore[union-attr]
INDEX = json.loads(MEMBERS["index.json"])
MANIFEST = json.loads(MEMBERS["blobs/sha256/" + INDEX["manifests"][0]["digest"][7:]])
CONFIG = json.loads(MEMBERS["blobs/sha256/" + MANIFEST["config"]["digest"][7:]])
_NAMES = [
    INDEX["manifests"][0]["digest"],
    MANIFEST["config"]["digest"],
    *(part["digest"] for part in MANIFEST["layers"]),
]
for _name in _NAMES:
    MEMBERS.pop("blobs/sha256/" + _name[7:], None)
MEMBERS.pop("index.json")


def run(data: bytes) -> None:
    script = Script(data)
    script.of(WAYS)(script)


def changed(script: Script, data: bytes) -> bytes:
    for _ in range(1 + script.below(4)):
        at = script.number(2) % (len(data) + 1)
        data = data[:at] + script.text(12) + data[at + script.of((0, 1, 1, 2, 4, 8, 12, 512)) :]
    return data


def dumps(value: Any) -> bytes:
    """As ``canonical``, and where that cannot write it, as Python does."""
    try:
        return canonical(value)
    except (ValueError, TypeError):
        return json.dumps(value).encode()


def configuration(script: Script) -> None:
    """What is accepted is canonical, and says the same when it is written again."""
    data = changed(script, ENCODED) if script.number() & 1 else dumps(edited(script, json.loads(ENCODED)))
    try:
        config = DomainConfig.parse(data)
    except ConfigError as error:
        demand(error.message and "\n" not in error.message, "an error of more than a line")
        return
    demand(config.encode() == data and DomainConfig.parse(data) == config, "another configuration of the same bytes")
    with contextlib.suppress(ConfigError):
        plan_boot(config, KERNEL, b"initrd")


def kernel(script: Script) -> None:
    with contextlib.suppress(ConfigError):
        parse_image(changed(script, KERNEL[:64])[:64] + KERNEL[64:])


def certificate(script: Script) -> None:
    """Where our walk finds a key, it is the one that OpenSSL finds, if that reads the certificate at all."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = changed(script, DER)
    with contextlib.suppress(MalformedEvidence):
        public_key(der)
    try:
        key = owner_public_key(certificate_pem(der))
    except ConfigError:
        return
    with contextlib.suppress(*UNREADABLE):
        theirs = x509.load_der_x509_certificate(der).public_key()
        demand(theirs.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == key, "another key")


def pem(script: Script) -> None:
    with contextlib.suppress(ConfigError):
        owner_public_key(changed(script, PEM).decode("utf-8", errors="surrogateescape"))


def bundle(script: Script) -> None:
    """A sound tar whose JSON is wrong, with digests that are right; or one with changed bytes."""
    members = dict(MEMBERS)

    def name(content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        members[f"blobs/sha256/{digest}"] = content
        return {"digest": f"sha256:{digest}", "size": len(content)}

    manifest = edited(script, MANIFEST)
    with contextlib.suppress(KeyError, TypeError, IndexError):
        manifest["config"] |= name(dumps(edited(script, CONFIG)))
        for layer in manifest["layers"]:
            layer |= name(KERNEL if "kernel" in layer["mediaType"] else bytes(8192))
    index = edited(script, INDEX)
    with contextlib.suppress(KeyError, TypeError, IndexError):
        index["manifests"][0] |= name(dumps(manifest))
    members["index.json"] = dumps(index)
    data = packed(members)
    if script.number() & 1:
        data = changed(script, data)
    FILE.write_bytes(data)
    try:
        Bundle.open(FILE).measurement()
    except (ImageError, ConfigError) as error:
        demand("\n" not in error.message, "an error of more than a line")


def packed(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


WAYS = (configuration, bundle, certificate, kernel, pem)
