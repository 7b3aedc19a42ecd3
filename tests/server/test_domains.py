"""Domains of all three classes at once, each at work, and root in one of them that looks for the others' memory."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from user import PROGRAMS, User, await_log

from vambrace.attest.image import ImageStatement, load_key, sign_image
from vambrace.client.console import Console
from vambrace.client.normal import NormalVm
from vambrace.client.secure import SecureVm
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.debian.system import stock_system
from vambrace.debian.tools import run
from vambrace.emulator.build import LOCK_FILE
from vambrace.errors import MessageRefused
from vambrace.image import Bundle
from vambrace.image.bundle import sign_bundle
from vambrace.image.manifest import NormalManifest, read_manifest
from vambrace.image.normal import build_normal

MIB = 1 << 20
MEMORY = 256 * MIB
PROMPT = b"# "
AUTOLOGIN = "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --keep-baud 115200 - dumb\n"


def debian(folder: Path) -> Path:
    """A stock Debian system with the scanner in it, and a console that root is logged in at."""
    files = folder / "files"
    unit = files / "etc/systemd/system/serial-getty@hvc0.service.d"
    unit.mkdir(parents=True)
    (unit / "autologin.conf").write_text(AUTOLOGIN)
    (files / "usr/local/bin").mkdir(parents=True)
    scanner = files / "usr/local/bin/scan"
    run(["aarch64-linux-gnu-gcc", "-O2", "-static", "-Wall", "-Werror", "-o", scanner, PROGRAMS / "scan/scan.c"])
    (folder / "debian.yaml").write_text(
        f"name: debian\nclass: normal\nmemory: {MEMORY >> 20}M\ndebian: {{files: files}}\n"
        "cmdline: root=/dev/vda rw console=hvc0 quiet\n"
    )
    cache = Cache()
    manifest = read_manifest(folder / "debian.yaml")
    assert isinstance(manifest, NormalManifest)
    out = folder / "debian.vambrace"
    build_normal(manifest, out, stock_system(Archive(cache.root / "archive", LOCK_FILE), cache))
    return out


def sign(bundle: Path, key: Path, out: Path) -> Path:
    opened = Bundle.open(bundle)
    config = opened.config
    statement = ImageStatement.of(config.kind.name, config.hash, opened.measurement(), config.encode())
    sign_bundle(opened, sign_image(load_key(key), statement), out)
    return out


def masked(pattern: bytes, mask: bytes) -> str:
    return bytes(a ^ b for a, b in zip(pattern[:16], mask, strict=True)).hex()


def test_three_classes_at_once_and_a_scan(user: User, tmp_path: Path) -> None:
    began = time.monotonic()
    took: dict[str, float] = {}
    with ExitStack() as stack:
        normal = stack.enter_context(NormalVm.create(debian(tmp_path), host=user.host, context=user.context))
        normal.start()
        took["Normal VM started"] = time.monotonic() - began
        # One processor is the domains': Debian boots while images are built here, and the others start after it.
        holder = {"name": "holder", "memory": "32M", "registers": [1]}
        images = [user.bundle(holder, verdict_seconds=600).rename(tmp_path / "realm")]
        images.append(user.bundle(holder | {"percent": None}, **{"class": "secure"}))
        console = stack.enter_context(Console(user.host, normal.uuid))
        console.write(b"\r")
        console.expect(PROMPT, 240)
        took["Debian's prompt"] = time.monotonic() - began
        realms = []
        for name in ("first", "second"):
            realms.append(user.create(images[0], name=name))
            stack.callback(realms[-1].abandon)
        for realm in realms:
            realm.verify()
            realm.approve()
            realm.start()
        secure = stack.enter_context(secure_vm(user, images[1], tmp_path))
        secure.verify()
        secure.start()
        said = [await_log(domain, "holder", b"\n") for domain in (*realms, secure)]
        secrets = [bytes.fromhex(re.fullmatch(rb"holding ([0-9a-f]+)\n", text)[1].decode()) for text in said]
        assert len(set(secrets)) == 3
        took["all at work"] = time.monotonic() - began
        # Fresh evidence of the Secure VM, against its bundle's measurement.
        assert secure.attest().measurement == Bundle.open(tmp_path / "signed.vambrace").measurement()
        verified = user.host.verify_partition()
        assert verified.passed and len(verified.domains) == 4, verified
        ram, found, other = scan(console, secrets)
        took["scan"] = time.monotonic() - began
        # All of its RAM but what its kernel keeps for itself; its own marker, and nobody else's.
        assert ram > MEMORY * 9 // 10
        assert found[-1] >= 1 and found[:-1] == [0, 0, 0]
        denied, faulted, zero, rest = other
        assert zero > 1000 and rest == 0 and faulted >= 1, other
        print(f"RAM {ram >> 20} MiB, found {found}; other addresses: {denied=} {faulted=} {zero=}")
        console.write(b"systemctl poweroff\r")
        info = user.host.wait(normal.uuid, lambda info: info.final, timeout=120)
        assert (info.state, info.reason) == ("stopped", "powered off")
        took["powered off"] = time.monotonic() - began
        assert secure.info().state == "running"
    for name, seconds in took.items():
        print(f"{seconds:7.1f} s  {name}")
    assert user.host.partition().owners == ()


def secure_vm(user: User, bundle: Path, folder: Path) -> SecureVm:
    """Refused with another's signature, taken when the platform's owner has signed it."""
    options = {"host": user.host, "owner": user.owner, "trust": user.trust, "context": user.context, "name": "vault"}
    with pytest.raises(MessageRefused, match="not by the platform owner"):
        SecureVm.create(sign(bundle, user.stranger.key_path, folder / "stranger.vambrace"), **options)
    return SecureVm.create(sign(bundle, user.platform_owner, folder / "signed.vambrace"), **options)


def scan(console: Console, secrets: list[bytes]) -> tuple[int, list[int], tuple[int, ...]]:
    """Run the scanner at the console: bytes of RAM read, counts of each secret and its own, and of other addresses."""
    mask, own = os.urandom(16), os.urandom(16)
    words = " ".join(masked(pattern, mask) for pattern in (*secrets, own))
    console.write(f"stty -echo; scan {mask.hex()} {words}\r".encode())
    printed = console.expect(b"scan done", 240).decode(errors="replace")
    assert "scan byte" not in printed, printed
    ram = re.search(r"scan ram (\d+)", printed)
    other = re.search(r"scan denied (\d+) faulted (\d+) zero (\d+) other (\d+)", printed)
    assert ram and other, printed
    found = [int(count) for count in re.findall(r"scan found (\d+)", printed)]
    return int(ram[1]), found, tuple(int(count) for count in other.groups())
