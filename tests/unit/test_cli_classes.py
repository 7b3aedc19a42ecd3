"""Commands about Secure and Normal VMs, against the daemon: what a user and an operator type."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from config_factory import make_disk, make_kernel, make_secure

from vambrace.attest.owner import OwnerIdentity
from vambrace.cli.main import main
from vambrace.image import Bundle, write_bundle

sys.path[:0] = [str(Path(__file__).parent / "test_host")]

from harness import DISK, Daemon, introduce, run  # noqa: E402
from harness_certificates import Certificates  # noqa: E402
from test_host_classes import normal  # noqa: E402

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def command(capfd: Capture) -> Callable[..., Any]:
    """Runs one command with ``--json``; its exit code and what it printed."""

    async def call(*words: str) -> tuple[int, Any]:
        capfd.readouterr()
        code = await asyncio.to_thread(main, [*words, "--json"])
        return code, json.loads(capfd.readouterr().out)

    return call


def files(folder: Path, *contents: bytes) -> list[Path]:
    paths = [folder / f"part{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def secure_bundle(folder: Path, owner: str) -> Path:
    parts = files(folder, make_kernel(), b"initrd", bytes(8192), b"\1" * 8192)
    disks = tuple(make_disk(part.name, sha256=hashlib.sha256(part.read_bytes()).hexdigest()) for part in parts[2:])
    return write_bundle(
        folder / "vault.vambrace", make_secure(name="vault", owner=owner, disks=disks), parts[0], parts[1], parts[2:]
    ).path


def test_a_secure_vm_is_signed_and_refused_by_command(
    tmp_path: Path, certificates: Certificates, own_state: Path, command: Callable[..., Any]
) -> None:
    keeper = OwnerIdentity.create(tmp_path / "keeper")
    stranger = OwnerIdentity.create(tmp_path / "stranger")
    bundle = secure_bundle(tmp_path, certificates.owner.certificate_pem)

    async def test(daemon: Daemon) -> None:
        introduce(daemon, own_state)
        await daemon.provision(keeper)
        code, answer = await command("run", str(bundle), "--allow-insecure")
        assert code == 4 and answer["kind"] == "MessageRefused" and "is not signed" in answer["error"]
        assert "image sign" in answer["hint"]
        assert (await command("image", "sign", str(bundle), "--key", str(stranger.key_path)))[0] == 0
        code, answer = await command("run", str(bundle), "--allow-insecure")
        assert code == 4 and "not by the platform owner" in answer["error"]
        measurement = Bundle.open(bundle).measurement().hex()
        code, answer = await command("image", "sign", str(bundle), "--key", str(keeper.key_path))
        assert (code, answer["measurement"]) == (0, measurement)
        code, answer = await command("image", "inspect", str(bundle))
        assert (answer["class"], answer["signed"], answer["measurement"]) == ("secure", True, measurement)
        # Nothing of what was refused is left, here or there.
        assert (await daemon.get("/v1/images")).json["images"] == []
        assert (await command("ps", "--all"))[1] == []
        assert list((own_state / "domains").iterdir()) == []
        code, answer = await command("image", "sign", str(bundle), "--key", str(keeper.certificate_path))
        assert code == 3 and "no such key" in answer["error"]

    (tmp_path / "daemon").mkdir()
    run(tmp_path / "daemon", certificates, test)


def test_a_normal_vm_by_command(
    tmp_path: Path,
    certificates: Certificates,
    own_state: Path,
    command: Callable[..., Any],
    capfd: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(daemon: Daemon) -> None:
        introduce(daemon, own_state)
        parts = files(tmp_path, daemon.kernel(), b"initrd", DISK)
        bundle = write_bundle(tmp_path / "d.vambrace", daemon.config(**normal()), parts[0], parts[1], parts[2:]).path
        code, answer = await command("image", "inspect", str(bundle))
        assert (code, answer["class"], answer["measurement"]) == (0, "normal", None)
        for words in (("measure", str(bundle)), ("sign", str(bundle), "--key", str(certificates.owner.key_path))):
            code, answer = await command("image", *words)
            assert code == 2 and "is not measured" in answer["error"]
        running = asyncio.create_task(command("run", str(bundle), "--name", "debian"))
        vmm = await daemon.vmm()
        await vmm.request("load")
        await vmm.request("start")
        code, answer = await running
        assert (code, answer["state"], answer["class"]) == (0, "running", "normal")
        assert [row["class"] for row in (await command("ps"))[1]] == ["normal"]
        # What is a Realm's is said to be.
        for words in (("encrypt", "debian", "--app", "x", "50"), ("attest", "debian"), ("logs", "debian")):
            code, answer = await command(*words, "--allow-insecure")
            assert code == 2 and "debian is a Normal VM" in answer["error"]
        await vmm.emit(event="console", data=base64.b64encode(b"login: ").decode())
        reading, writing = os.pipe()
        monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
        looking = asyncio.create_task(asyncio.to_thread(main, ["console", "debian"]))
        await asyncio.to_thread(os.write, writing, b"root\n")
        assert base64.b64decode((await vmm.request("console"))["data"]) == b"root\n"
        await asyncio.to_thread(os.write, writing, b"\x1d")
        assert await looking == 0
        os.close(writing)
        assert "login: " in capfd.readouterr().out
        assert (await asyncio.to_thread(main, ["destroy", "debian"])) == 0

    (tmp_path / "daemon").mkdir()
    run(tmp_path / "daemon", certificates, test)
