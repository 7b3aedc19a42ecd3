"""The daemon on a host with colours: a domain's way to its page frames, and VMMs that were taken over before it.

The VMM is a fake, its pages are real, and so are their frames.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from harness import MIB, Daemon, Vmm, introduce, run
from harness_certificates import Certificates

from vambrace.attest.token import decode_evidence
from vambrace.cache import CacheShare
from vambrace.cli.main import main
from vambrace.host import caches
from vambrace.host.settings import COLOURS, CacheSettings
from vambrace.partition.geometry import configured
from vambrace.partition.placement import read_frames

PAGE = 4096
#: 16 colours, of which the host keeps two.
CACHE = CacheSettings(COLOURS, 10, configured({"size": MIB, "line": 64, "ways": 16}))

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root sees page frame numbers")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine is changed or measured."""
    monkeypatch.setattr(caches, "forbid_migration", lambda: None)
    monkeypatch.setattr(caches, "virtual_machine", lambda: "the test says so")


async def loading(daemon: Daemon, **changes: Any) -> tuple[str, Vmm, dict[str, Any]]:
    """A domain whose VMM was told to load, and has not answered yet."""
    changes = {"cache": CacheShare("required", 25)} | changes
    handle = await daemon.create(await daemon.upload({"load": "silent"}, **changes), changes.get("name", "patients"))
    vmm = await daemon.vmm()
    return handle, vmm, await vmm.request("load")


async def loaded(daemon: Daemon, vmm: Vmm, load: dict[str, Any], **memory: Any) -> None:
    """The VMM's reply."""
    digest = hashlib.sha256(daemon.config(cache=CacheShare("required", 25)).encode()).hexdigest()
    await vmm.emit(id=load["id"], ok=True, measurement="ab" * 32, config=digest, **memory)


def test_the_daemon_says_which_pages_to_keep(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        _, vmm, load = await loading(daemon)
        assert 0 < load["draw"] <= daemon.settings.guest_memory // PAGE
        await vmm.emit(ask="choose", address=vmm.address, pages=64)
        answer = await vmm.answer()
        kept = base64.b64decode(answer["keep"])
        frames = read_frames(vmm.pid, vmm.address, 64)
        assert answer["answer"] is True
        assert [kept[i // 8] >> i % 8 & 1 for i in range(64)] == [frame % 16 in (2, 3, 4, 5) for frame in frames]
        await vmm.emit(ask="choose", address=vmm.address + 1, pages=64)
        error = f"process {vmm.pid} asks about page frames that cannot be asked about"
        assert await vmm.answer() == {"answer": False, "error": error}

    run(tmp_path, certificates, test, cache=CACHE)


def test_memory_with_other_frames(tmp_path: Path, certificates: Certificates) -> None:
    """The VMM shows memory that was not placed: its first page with a frame of another colour, or none, is told."""

    async def test(daemon: Daemon) -> None:
        handle, vmm, load = await loading(daemon)
        await loaded(daemon, vmm, load, guest=vmm.address, side=1 << 40)
        reason = (await daemon.state(handle, "failed"))["reason"]
        assert reason.startswith("patients: page ")

    run(tmp_path, certificates, test, cache=CACHE)


@pytest.mark.parametrize("memory", [{}, {"guest": 0, "side": PAGE}, {"guest": 1 << 30, "side": 1 << 30}])
def test_memory_that_cannot_be(tmp_path: Path, certificates: Certificates, memory: dict[str, int]) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm, load = await loading(daemon)
        await loaded(daemon, vmm, load, **memory)
        view = await daemon.state(handle, "failed")
        assert view["reason"].startswith("the VMM ") and "where its guest's memory is" in view["reason"]
        assert not view["executed"]

    run(tmp_path, certificates, test, cache=CACHE)


def test_memory_without_its_frames(tmp_path: Path, certificates: Certificates) -> None:
    """The VMM says that it placed its window, and shows memory where there is nothing: no token is made."""

    async def test(daemon: Daemon) -> None:
        handle, vmm, load = await loading(daemon)
        await loaded(daemon, vmm, load, guest=1 << 40, side=1 << 41)
        view = await daemon.state(handle, "failed")
        assert view["reason"] == "the VMM does not say where its guest's memory is"
        assert (await daemon.get(f"/v1/domains/{handle}/token")).status == 409
        assert (await daemon.get("/v1/partition")).json["kinds"][1]["free"] == list(range(2, 16))

    run(tmp_path, certificates, test, cache=CACHE)


def test_questions_out_of_turn(tmp_path: Path, certificates: Certificates) -> None:
    async def twice(daemon: Daemon) -> None:
        handle, vmm, _ = await loading(daemon)
        for _ in range(2):
            await vmm.emit(ask="choose", address=vmm.address, pages=64)
        assert (await daemon.state(handle, "failed"))["reason"] == "the VMM asks about page frames out of turn"

    async def undivided(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting()
        await vmm.emit(ask="choose", address=vmm.address, pages=64)
        assert (await daemon.state(handle, "failed"))["reason"] == "the VMM asks about page frames out of turn"

    async def nonsense(daemon: Daemon) -> None:
        for number, question in enumerate(({"ask": "frames"}, {"ask": "choose", "address": "0", "pages": 1})):
            handle, vmm, _ = await loading(daemon, name=f"domain-{number}")
            await vmm.emit(**question)
            assert "unknown question" in (await daemon.state(handle, "failed"))["reason"]

    for name, test, settings in (("a", twice, CACHE), ("b", undivided, CacheSettings()), ("c", nonsense, CACHE)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, certificates, test, cache=settings)


def test_the_next_one_waits_and_is_not_kept_for_ever(tmp_path: Path, certificates: Certificates) -> None:
    """One domain is placed at a time; the end of one that hangs is the beginning of the next."""

    async def test(daemon: Daemon) -> None:
        first, vmm, _ = await loading(daemon)
        second = await daemon.create(await daemon.upload({"load": "silent"}, name="second"), "second")
        await asyncio.sleep(0.5)
        assert (await daemon.get(f"/v1/domains/{second}")).json["state"] == "loading"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(daemon.vmm(), 0.5)
        await daemon.call("DELETE", f"/v1/domains/{first}")
        other = await daemon.vmm()
        assert (await other.request("load"))["draw"] > 0 and other.pid != vmm.pid

    run(tmp_path, certificates, test, cache=CACHE)


def test_a_demand_is_refused_with_the_reason(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        image = await daemon.upload(cache=CacheShare("required", 25))
        body = {"name": "strict", "image": image, "nonce": os.urandom(32).hex()}
        answer = await daemon.call("PUT", f"/v1/domains/{uuid.uuid4()}", json=body)
        assert answer.status == 507
        assert answer.json["detail"] == (
            "strict demands a part of the cache for itself: the host's settings leave the cache undivided"
        )
        handle, _ = await daemon.awaiting(cache=CacheShare("preferred", 25))
        token = decode_evidence((await daemon.get(f"/v1/domains/{handle}/token")).body)
        assert token.realm.cache_partition == "none"

    run(tmp_path, certificates, test)


def test_the_command_shows_colours(
    tmp_path: Path, certificates: Certificates, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test(daemon: Daemon) -> None:
        introduce(daemon)
        await loading(daemon)
        assert await asyncio.to_thread(main, ["partition"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[:4] == ["DOMAIN", "MEMORY", "PROCESSORS", "COLOURS"]
        assert "2-5" in lines[1].split() and lines[2].split()[:4] == ["(host)", "-", "-", "0,"]
        assert "6-15" in lines[3] and "0-15" in lines[4]
        why = "this is a virtual machine (the test says so)"
        assert f"last-level cache: divided by colours, unconfirmed ({why})" in lines

    run(tmp_path, certificates, test, cache=CACHE)
