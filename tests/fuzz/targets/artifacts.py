"""What images are made of and come from: manifests and signatures of registries, programs, lists of requirements, and
scripts of packages."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from config_factory import make_application, make_elf
from jsons import edited
from script import Script, demand

from vambrace.attest.cosign import sign_manifest, verify_manifest
from vambrace.attest.suites import generate
from vambrace.canonical import canonical
from vambrace.debian.configure import find_accounts, find_alternatives
from vambrace.errors import ConfigError, ImageError, SignatureInvalid
from vambrace.image import bundle as form
from vambrace.image.oci import MANIFEST
from vambrace.image.programs import check_program
from vambrace.image.remote_images import Reference, describe
from vambrace.image.requirements import guest_markers, read_requirements
from vambrace.suite import NIST

FOLDER = Path(tempfile.mkdtemp())
(FOLDER / "tree/usr/bin").mkdir(parents=True)
(FOLDER / "files").mkdir()
PROGRAM, LIST = FOLDER / "files/program", FOLDER / "requirements.txt"
APPLICATION = make_application(command=("./program",), environment={})
MARKERS = guest_markers("3.13")
REFERENCE = Reference.parse("docker://registry/name:1")
KEY = generate(NIST)
DIGEST = "ab" * 32
PAYLOAD, SIGNATURE = sign_manifest(KEY, DIGEST, "registry/name:1")
KINDS = (form.CONFIG, form.KERNEL, form.INITRD, form.DISK, form.DISK)
PARTS = [{"mediaType": kind, "digest": f"sha256:{'0' * 63}{n}", "size": 4096} for n, kind in enumerate(KINDS)]
STATED = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": form.ARTIFACT}
STATED |= {"config": PARTS[0], "layers": PARTS[1:]}
# Headers of a program that names a dynamic linker, and a table of what it needs.
ELF = make_elf()[:32] + (64).to_bytes(8, "little") + make_elf()[40:56] + b"\3\0" + make_elf()[58:]
ELF += b"\3\0\0\0\4\0\0\0" + b"".join(n.to_bytes(8, "little") for n in (300, 300, 300, 30, 30, 1))
ELF += b"\2\0\0\0\4\0\0\0" + b"".join(n.to_bytes(8, "little") for n in (340, 340, 340, 80, 80, 8))
ELF += b"\1\0\0\0\5\0\0\0" + b"".join(n.to_bytes(8, "little") for n in (0, 0, 0, 512, 512, 4096))
ELF = ELF.ljust(300, b"\0") + b"/lib/ld-linux-aarch64.so.1\0".ljust(40, b"\0")
ELF += b"".join(n.to_bytes(8, "little") for n in (5, 420, 10, 12, 1, 1, 29, 4, 0, 0))
ELF += b"\0libc.so.6\0".ljust(40, b"\0")
SCRIPT = b"update-alternatives --install /usr/bin/ed ed /usr/bin/vi 10 --slave /usr/a a /usr/b\nadduser --system x\n"
REQUIREMENTS = b"numpy[x]>=2; python_version >= '3.10' \\\n --hash=sha256:" + b"a" * 64 + b"\n-r more.txt\n# no\n"


def run(data: bytes) -> None:
    script = Script(data)
    script.of(WAYS)(script)


def changed(script: Script, data: bytes) -> bytes:
    for _ in range(script.below(5)):
        at = script.number(2) % (len(data) + 1)
        data = data[:at] + script.text(24) + data[at + script.of((0, 1, 1, 2, 4, 8, 12, 512)) :]
    return data


def one_line(error: Exception) -> None:
    demand("\n" not in str(error), "an error of more than one line")


def manifest(script: Script) -> None:
    """Stated sizes are bounded, digests are such, and there is one for each part."""
    raw = changed(script, canonical(STATED)) if script.below(2) else json.dumps(edited(script, STATED)).encode()
    try:
        found = describe(REFERENCE, raw)
    except ImageError as error:
        return one_line(error)
    demand(3 <= len(found.blobs) <= 3 + 32 and found.size < 1 << 40, "an image of any size")
    return demand(all(len(blob.digest) == 64 and blob.size >= 0 for blob in found.blobs), "no digest or size")


def signature(script: Script) -> None:
    payload, signed = changed(script, PAYLOAD), changed(script, SIGNATURE.encode()).decode(errors="replace")
    with contextlib.suppress(SignatureInvalid):
        verify_manifest(KEY.public_key(), DIGEST, payload, signed)
        demand(payload == PAYLOAD, "a signature on something else")


def program(script: Script) -> None:
    start = script.of((ELF, b"#!/usr/bin/env sh\n", b""))
    PROGRAM.write_bytes(changed(script, start))
    PROGRAM.chmod(0o755)
    try:
        check_program(APPLICATION, FOLDER / "tree", FOLDER / "files")
    except ConfigError as error:
        one_line(error)


def requirements(script: Script) -> None:
    LIST.write_bytes(changed(script, REQUIREMENTS))
    (FOLDER / "more.txt").write_bytes(script.of((b"scipy\n", b"-r requirements.txt\n")))
    try:
        found = read_requirements(LIST, MARKERS)
    except ConfigError as error:
        return one_line(error)
    return demand(not any(each.requirement.url for each in found), "a requirement from anywhere")


def scripts(script: Script) -> None:
    """Whatever a package's script says, links are absolute and lead to absolute places, by names that are no paths."""
    text = changed(script, SCRIPT).decode(errors="replace")
    for each in find_alternatives(text):
        demand(each.link.startswith("/") and ".." not in each.link.split("/"), "a link outside")
        demand("/" not in each.name, "a name that is a path")
    demand(all(":" not in name and "\n" not in name for name in find_accounts(text)), "an account that is two")


WAYS = (manifest, signature, program, requirements, scripts)
