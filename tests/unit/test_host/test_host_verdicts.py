"""Verdicts that must not start a Realm: whatever comes, its VMM is never asked to run it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import types
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, Vmm, alive, run, soon
from harness_certificates import Certificates


async def seen(vmm: Vmm) -> list[str]:
    """What the VMM was asked since the test last looked, until it ended."""
    asked = []
    while packet := await soon(asyncio.get_running_loop().sock_recv(vmm.stream, 1 << 17)):
        asked.append(json.loads(packet)["op"])
    return asked


async def yes_for(daemon: Daemon, handle: str) -> bytes:
    """The owner's good word for this Realm, not sent yet."""
    view = (await daemon.get(f"/v1/domains/{handle}")).json
    token = (await daemon.get(f"/v1/domains/{handle}/token")).body
    instance = bytes.fromhex(view["instance"])
    return daemon.certificates.owner.sign_verdict(instance, hashlib.sha256(token).digest(), yes=True)


async def never_executed(daemon: Daemon, handle: str, vmm: Vmm, state: str = "refused") -> dict[str, Any]:
    """Wait for the end; it came without a single instruction."""
    view = await daemon.state(handle, state)
    assert view["executed"] is False
    assert "running" not in [event["name"] for event in view["events"]]
    assert await seen(vmm) == ["destroy"]
    assert not alive(vmm.pid)
    return view


@pytest.mark.parametrize("change", ["signer", "instance", "token", "owner of another image"])
def test_a_verdict_that_is_not_the_owner_s_for_this_instance(
    tmp_path: Path, certificates: Certificates, change: str
) -> None:
    """Refused, and the silence after it ends the Realm."""

    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting(verdict_seconds=2)
        changes: dict[str, Any] = {
            "signer": {"signer": certificates.stranger},
            "instance": {"instance": bytes(range(16))},
            "token": {"token": b"another token"},
            "owner of another image": {"signer": certificates.stranger, "token": b"another token"},
        }[change]
        assert (await daemon.verdict(handle, "yes", **changes)).status == 403
        view = await never_executed(daemon, handle, vmm)
        assert view["reason"] == "no verdict within 2 s"

    run(tmp_path, certificates, test)


def test_silence(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting(verdict_seconds=1)
        await never_executed(daemon, handle, vmm)

    run(tmp_path, certificates, test)


def test_an_old_verdict(tmp_path: Path, certificates: Certificates) -> None:
    """The yes to an earlier run of the same image under the same name, for the same nonce even."""

    async def test(daemon: Daemon) -> None:
        first, vmm = await daemon.awaiting(verdict_seconds=2)
        old = await yes_for(daemon, first)
        asked = (await daemon.get(f"/v1/domains/{first}")).json
        assert (await daemon.verdict_bytes(first, old)).status == 200
        await daemon.state(first, "running")
        assert (await daemon.call("DELETE", f"/v1/domains/{first}")).json["state"] == "destroyed"
        assert await seen(vmm) == ["start", "destroy"]

        second = first[:-4] + ("0000" if first[-4:] != "0000" else "1111")
        body = {name: asked[name] for name in ("name", "image", "nonce")}
        assert (await daemon.call("PUT", f"/v1/domains/{second}", json=body)).status == 201
        vmm = await daemon.vmm()
        await vmm.request("load")
        await daemon.state(second, "awaiting-verdict")
        assert (await daemon.verdict_bytes(second, old)).status == 403
        await never_executed(daemon, second, vmm)

    run(tmp_path, certificates, test)


def test_a_verdict_for_another_instance_of_the_same_image(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        image = await daemon.upload(verdict_seconds=3)
        realms = []
        for name in ("one", "other"):
            handle = await daemon.create(image, name)
            vmm = await daemon.vmm()
            await vmm.request("load")
            await daemon.state(handle, "awaiting-verdict")
            realms.append((handle, vmm, await yes_for(daemon, handle)))
        (one, vmm_of_one, _), (other, vmm_of_other, yes_to_other) = realms
        assert (await daemon.verdict_bytes(one, yes_to_other)).status == 403
        assert (await daemon.verdict_bytes(other, yes_to_other)).status == 200
        await vmm_of_other.request("start")
        await never_executed(daemon, one, vmm_of_one)

    run(tmp_path, certificates, test)


def test_a_verdict_after_the_deadline(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting(verdict_seconds=1)
        good = await yes_for(daemon, handle)
        await never_executed(daemon, handle, vmm)
        assert (await daemon.verdict_bytes(handle, good)).status == 409

    run(tmp_path, certificates, test)


def test_a_verdict_after_the_deadline_that_nobody_has_noticed_yet(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock, not the daemon's turn to look at it, decides: it may have been busy."""

    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting(verdict_seconds=100)
        good = await yes_for(daemon, handle)
        deadline = (await daemon.get(f"/v1/domains/{handle}")).json["deadline"]
        late = types.SimpleNamespace(time=lambda: deadline + 0.001)
        monkeypatch.setattr("vambrace.host.realm.time", late)
        answer = await daemon.verdict_bytes(handle, good)
        assert answer.status == 409 and "deadline" in answer.json["detail"]
        assert (await daemon.call("DELETE", f"/v1/domains/{handle}")).json["state"] == "destroyed"
        await never_executed(daemon, handle, vmm, "destroyed")

    run(tmp_path, certificates, test)


def test_no_cannot_be_taken_back(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting()
        good = await yes_for(daemon, handle)
        assert (await daemon.verdict(handle, "no")).status == 200
        assert (await daemon.verdict_bytes(handle, good)).status == 409
        await never_executed(daemon, handle, vmm)

    run(tmp_path, certificates, test)


def test_yes_starts_once(tmp_path: Path, certificates: Certificates) -> None:
    """The same good word again is refused: before the VMM has answered, while it runs, and afterwards."""

    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting()
        good = await yes_for(daemon, handle)
        answers = await asyncio.gather(*(daemon.verdict_bytes(handle, good) for _ in range(4)))
        assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]
        await daemon.state(handle, "running")
        assert (await daemon.verdict_bytes(handle, good)).status == 409
        await vmm.request("start")
        # A Realm that resets itself ends: its next instruction would be one of a new instance.
        await vmm.emit(event="ended", reason="reset", detail="")
        assert (await daemon.state(handle, "failed"))["reason"] == "reset: a restart is a new instance"
        assert (await daemon.verdict_bytes(handle, good)).status == 409
        assert await seen(vmm) == ["destroy"]

    run(tmp_path, certificates, test)
