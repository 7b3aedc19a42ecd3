"""A saved state holds nothing that must be different from one run to the next."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path

from machine import Machine, dumped
from user import User

from vambrace.attest.token import decode_evidence
from vambrace.emulator import memory
from vambrace.emulator.server import Server
from vambrace.image import Bundle
from vambrace.image.base import RuntimeBase

KEY = 32
SCHEDULE = 240


@dataclass(frozen=True)
class Run:
    """What one run used: all of these must be another run's in no part."""

    instance: bytes
    realm_key: bytes
    signatures: tuple[bytes, bytes]
    keys: frozenset[bytes]


def aes_keys(dump: Path) -> frozenset[bytes]:
    """Every AES-256 key whose schedule lies in ``dump`` as a whole."""
    places = [place.offset for place in memory.aes256_schedules(dump) if place.length == SCHEDULE]
    with dump.open("rb") as file:
        found = []
        for offset in places:
            file.seek(offset)
            found.append(file.read(KEY))
    return frozenset(found)


def observe(server: Server, user: User, bundle: Path, nonce: bytes, folder: Path) -> Run:
    """One Realm of ``bundle``, as far as its token, for ``nonce``."""
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    if not user.host.has_image(digest):
        user.host.send(Bundle.open(bundle), digest)
    realm = str(uuid.uuid4())
    user.host.create(realm, "same", digest, nonce)
    try:
        user.host.wait(realm, lambda info: info.state == "awaiting-verdict", timeout=300)
        evidence = decode_evidence(user.host.token(realm))
        with dumped(server, folder) as dump:
            keys = aes_keys(dump)
    finally:
        user.host.destroy(realm)
    return Run(
        evidence.realm.instance,
        evidence.realm.rak,
        (evidence.platform_message.signature, evidence.realm_message.signature),
        keys,
    )


def test_two_resumes(machine: Machine, product: Server, base: RuntimeBase, tmp_path: Path) -> None:
    """Two runs from one saved state, asked for the same Realm with the same nonce, have no secret in common."""
    saved = product.home / "saved"
    inode = (saved / "ram").stat().st_ino
    # What lies in the saved memory is the same in both, and must be in no use afterwards.
    old = aes_keys(saved / "ram")
    user = User(tmp_path, product, base)
    bundle = user.bundle(verdict_seconds=600)
    nonce = hashlib.sha256(b"the same").digest()
    runs = []
    for _ in range(2):
        product.down()
        product.up(machine.tell)
        assert machine.said[-1].endswith("(resumed)")
        assert (saved / "ram").stat().st_ino == inode
        runs.append(observe(product, user, bundle, nonce, tmp_path))
    first, second = runs
    assert first.instance != second.instance
    assert first.realm_key != second.realm_key
    assert not set(first.signatures) & set(second.signatures)
    print(f"AES-256 keys: {len(old)} saved, {len(first.keys)} and {len(second.keys)} after the resumes")
    fresh = [run.keys - old for run in runs]
    assert all(fresh)
    assert not fresh[0] & fresh[1]
