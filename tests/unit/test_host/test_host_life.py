"""The life cycle 401–406 against a fake VMM: every way through it and out of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import uuid
from pathlib import Path
from typing import Any

import cbor2
import pytest
from harness import MIB, PATIENCE, Daemon, Vmm, alive, run, soon
from harness_certificates import Certificates

from vambrace.attest.challenge import launch_challenge
from vambrace.attest.claims import INSECURE_COMPONENT
from vambrace.attest.policy import Policy
from vambrace.attest.references import ReferenceValues
from vambrace.attest.verify import verify_evidence
from vambrace.errors import InsecurePlatform
from vambrace.host.lifecycle import TRANSITIONS, Lifecycle, State
from vambrace.host.vmm import started_at


def test_whole_life(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        image = await daemon.upload()
        handle, nonce = str(uuid.uuid4()), os.urandom(32)
        body = {"name": "patients", "image": image, "nonce": nonce.hex()}
        assert (await daemon.call("PUT", f"/v1/domains/{handle}", json=body)).status == 201
        vmm = await daemon.vmm()
        load = await vmm.request("load")
        assert len(bytes.fromhex(load["share"])) == 32
        names = ["config", "kernel", "initrd", "disk:base", "kvm", "userfaultfd", "vhost-vsock"]
        assert load["descriptors"] == names
        view = await daemon.state(handle, "awaiting-verdict")
        assert view["executed"] is False
        assert view["step"] == 403
        assert view["instance"] == load["instance"]
        stored = daemon.settings.state / "images" / image
        expected = hashlib.sha256(daemon.config().encode() + (stored / "kernel").read_bytes())
        assert view["measurement"] == expected.hexdigest()
        mine = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        assert not [path for path in mine if stored in path.parents], "the daemon has closed what it sent"
        token = (await daemon.get(f"/v1/domains/{handle}/token")).body
        platform, realm = halves(token)
        assert len(platform[1][33]) == 2
        claims = cbor2.loads(realm[2])
        assert claims[10] == launch_challenge(nonce, bytes.fromhex(view["instance"]))
        assert (await daemon.verdict(handle, "yes")).status == 200
        await vmm.request("start")
        assert (await daemon.state(handle, "running"))["executed"] is True
        assert (await vmm.ask("report", state="ready"))["ok"]
        assert (await vmm.ask("identity"))["instance"] == view["instance"]
        await vmm.tell("report", state="succeeded")
        view = await daemon.state(handle, "succeeded")
        assert [event["name"] for event in view["events"]] == [
            "created",
            "loading",
            "awaiting-verdict",
            "encrypting",
            "running",
            "agent ready",
            "destroying",
            "succeeded",
        ]
        assert not alive(vmm.pid)
        # Idempotent to the end, and the key share is nowhere on the disk.
        assert (await daemon.call("PUT", f"/v1/domains/{handle}", json=body)).json == view
        for path in daemon.settings.state.rglob("*"):
            assert path.is_dir() or load["share"].encode() not in path.read_bytes()

    run(tmp_path, certificates, test)


def test_token_satisfies_the_verifier(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        nonce = os.urandom(32)
        handle = str(uuid.uuid4())
        body = {"name": "patients", "image": await daemon.upload(), "nonce": nonce.hex()}
        await daemon.call("PUT", f"/v1/domains/{handle}", json=body)
        view = await daemon.state(handle, "awaiting-verdict")
        token = (await daemon.get(f"/v1/domains/{handle}/token")).body
        instance = bytes.fromhex(view["instance"])
        expected: dict[str, Any] = {
            "roots": [certificates.vendor.certificate],
            "references": ReferenceValues((INSECURE_COMPONENT,)),
            "challenge": launch_challenge(nonce, instance),
            "measurement": bytes.fromhex(view["measurement"]),
            "personalization": certificates.owner.personalization(),
        }
        with pytest.raises(InsecurePlatform):
            verify_evidence(token, **expected)
        realm = verify_evidence(token, **expected, policy=Policy(allow_insecure=True))
        assert realm.instance == instance

    run(tmp_path, certificates, test)


def halves(token: bytes) -> tuple[list[Any], list[Any]]:
    collection = cbor2.loads(token)
    assert collection.tag == 907
    (_, platform), (_, realm) = collection.value[44234], collection.value[44241]
    return cbor2.loads(platform).value, cbor2.loads(realm).value


def test_no_is_final_and_nothing_runs(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting()
        assert (await daemon.verdict(handle, "no")).status == 200
        await vmm.request("destroy")
        view = await daemon.state(handle, "refused")
        assert view["executed"] is False
        assert not alive(vmm.pid)
        assert (await daemon.verdict(handle, "yes")).status == 409

    run(tmp_path, certificates, test)


def test_silence_refuses(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting(verdict_seconds=1)
        await vmm.request("destroy")
        view = await daemon.state(handle, "refused")
        assert view["executed"] is False
        assert "no verdict" in view["reason"]
        assert (await daemon.verdict(handle, "yes")).status == 409

    run(tmp_path, certificates, test)


def test_wrong_verdicts_change_nothing(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting()
        wrong: list[dict[str, Any]] = [
            {"signer": certificates.stranger},
            {"instance": bytes(16)},
            {"token": b"another token"},
        ]
        for change in wrong:
            answer = await daemon.verdict(handle, "yes", **change)
            assert answer.status == 403, change
        for noise in (b"", b"\xff" * 100, b"\xd2\x84" * 1000):
            answer = await daemon.call("POST", f"/v1/domains/{handle}/verdict", data=noise)
            assert answer.status == 403
        huge = await daemon.call("POST", f"/v1/domains/{handle}/verdict", data=bytes(1 << 20))
        assert huge.status == 413
        assert (await daemon.state(handle, "awaiting-verdict"))["executed"] is False
        first, second = await asyncio.gather(daemon.verdict(handle, "yes"), daemon.verdict(handle, "no"))
        assert sorted((first.status, second.status)) == [200, 409]
        await vmm.request("start" if first.status == 200 else "destroy")

    run(tmp_path, certificates, test)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"load": "error"}, "load fails"),
        ({"load": "die"}, "the VMM"),
        ({"load": "garbage"}, "protocol"),
        ({"load": "silent"}, "did not answer load"),
        ({"start": "error"}, "start fails"),
        ({"start": "die"}, "the VMM"),
    ],
)
def test_vmm_failures(tmp_path: Path, certificates: Certificates, script: dict[str, str], reason: str) -> None:
    async def test(daemon: Daemon) -> None:
        handle = await daemon.create(await daemon.upload(script))
        vmm = await daemon.vmm()
        if "start" in script:
            await daemon.state(handle, "awaiting-verdict")
            await daemon.verdict(handle, "yes")
        view = await daemon.state(handle, "failed")
        assert reason in view["reason"]
        assert not alive(vmm.pid)

    run(tmp_path, certificates, test, vmm_seconds=2)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"reason": "poweroff", "detail": ""}, "powered off"),
        ({"reason": "reset", "detail": ""}, "reset: a restart is a new instance"),
        ({"reason": "crash", "detail": "panic"}, "crash: panic"),
        ({"reason": "integrity", "detail": "page 3\n\x1b[31m"}, "integrity: page 3??[31m"),
    ],
)
def test_guest_ends(tmp_path: Path, certificates: Certificates, event: dict[str, str], reason: str) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.running()
        await vmm.emit(event="ended", **event)
        view = await daemon.state(handle, "failed")
        assert view["reason"] == reason
        assert not alive(vmm.pid)

    run(tmp_path, certificates, test)


def test_killed_vmm(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.running()
        os.kill(vmm.pid, 9)
        view = await daemon.state(handle, "failed")
        assert view["executed"] is True
        assert not alive(vmm.pid)
        assert (await daemon.call("DELETE", f"/v1/domains/{handle}")).json == view

    run(tmp_path, certificates, test)


def test_agent_never_ready(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting()
        await daemon.verdict(handle, "yes")
        await vmm.request("start")
        assert "not ready" in (await daemon.state(handle, "failed"))["reason"]

    run(tmp_path, certificates, test, agent_seconds=1)


def test_delete_in_every_state(tmp_path: Path, certificates: Certificates) -> None:
    async def destroy(daemon: Daemon, handle: str, vmm: Vmm) -> None:
        first, second = await asyncio.gather(*(daemon.call("DELETE", f"/v1/domains/{handle}") for _ in range(2)))
        assert first.json["state"] == second.json["state"] == "destroyed"
        assert not alive(vmm.pid)

    async def test(daemon: Daemon) -> None:
        image = await daemon.upload({"load": "silent"})
        loading = await daemon.create(image, "loading")
        vmm = await daemon.vmm()
        assert (await daemon.get("/v1/host")).json["domains"] == 1
        answer = await daemon.call("DELETE", f"/v1/images/{image}")
        assert answer.status == 409
        await destroy(daemon, loading, vmm)
        awaiting = await daemon.awaiting()
        await destroy(daemon, *awaiting)
        assert (await daemon.get(f"/v1/domains/{awaiting[0]}")).json["executed"] is False
        await destroy(daemon, *await daemon.running())
        assert (await daemon.call("DELETE", f"/v1/domains/{uuid.uuid4()}")).status == 404
        assert (await daemon.call("DELETE", f"/v1/images/{image}")).status == 204

    run(tmp_path, certificates, test)


def test_delete_at_once(tmp_path: Path, certificates: Certificates) -> None:
    """The end may come before the VMM exists; nothing of it stays."""

    async def test(daemon: Daemon) -> None:
        image = await daemon.upload()
        for number in range(5):
            handle = await daemon.create(image, f"r{number}")
            assert (await daemon.call("DELETE", f"/v1/domains/{handle}")).json["state"] == "destroyed"
        await one_waits()

    run(tmp_path, certificates, test)
    assert children() == []


def test_a_vmm_waits_for_the_next_realm(tmp_path: Path, certificates: Certificates) -> None:
    """A Realm gets the process that waited, no other Realm gets it again, and one that died is replaced."""

    async def test(daemon: Daemon) -> None:
        waiting = await one_waits()
        handle, first = await daemon.awaiting()
        assert first.pid == waiting
        following = await one_waits(waiting)
        assert (await daemon.call("DELETE", f"/v1/domains/{handle}")).status == 200
        assert not alive(waiting)
        os.kill(following, signal.SIGKILL)
        _, second = await daemon.awaiting()
        assert second.pid not in (waiting, following)

    run(tmp_path, certificates, test)
    assert children() == []


async def one_waits(*others: int) -> int:
    """The process that waits for a Realm; fails if there are more than that and ``others``."""
    async with asyncio.timeout(PATIENCE):
        while len(pids := {int(pid) for pid in children()} - set(others)) != 1:
            await asyncio.sleep(0.02)
    return pids.pop()


def children() -> list[str]:
    """Living fake VMMs of this process."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [pid for pid in text.split() if b"fake_vmm" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_restart_forgets_nothing(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.running()
        record = daemon.settings.state / "domains" / f"{handle}.json"
        while json.loads(record.read_bytes())["agent"] != "ready":
            await asyncio.sleep(0.01)
        crashed = record.read_bytes()
        await daemon.stop()
        assert not alive(vmm.pid)
        assert json.loads(record.read_bytes())["reason"] == "host stopped"
        # As after a crash: an unfinished record, a VMM that lives on, leftovers of uploads.
        sleeper = await asyncio.create_subprocess_exec("sleep", "600")
        unfinished = {**json.loads(crashed), "vmm_pid": sleeper.pid, "vmm_started": started_at(sleeper.pid)}
        record.write_text(json.dumps(unfinished))
        stale = record.with_name(f"{uuid.uuid4()}.json")
        bystander = await asyncio.create_subprocess_exec("sleep", "600")
        reused = {**unfinished, "uuid": stale.stem, "vmm_pid": bystander.pid, "vmm_started": 1}
        stale.write_text(json.dumps(reused))
        record.with_name("damaged.json").write_text("{")
        (daemon.settings.state / "tmp" / "upload").write_text("half")
        await daemon.start()
        assert await soon(sleeper.wait()) == -9
        assert bystander.returncode is None
        bystander.kill()
        await bystander.wait()
        view = (await daemon.get(f"/v1/domains/{handle}")).json
        assert (view["state"], view["reason"], view["executed"]) == ("failed", "host restarted", True)
        assert list((daemon.settings.state / "tmp").iterdir()) == []
        assert (await daemon.get(f"/v1/domains/{handle}/token")).status == 409
        assert (await daemon.verdict_bytes(handle, b"x")).status == 409
        # The image is still there, the name is free again.
        assert (await daemon.create(view["image"])) != handle

    run(tmp_path, certificates, test)


def test_admission(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        image = await daemon.upload()
        first = await daemon.create(image, "first")
        handle = str(uuid.uuid4())
        body = {"name": "first", "image": image, "nonce": "00" * 32}
        answer = await daemon.call("PUT", f"/v1/domains/{handle}", json=body)
        assert answer.status == 409
        answer = await daemon.call("PUT", f"/v1/domains/{first}", json=body)
        assert answer.status == 409, "the same UUID with another nonce"
        body["name"] = "second"
        answer = await daemon.call("PUT", f"/v1/domains/{handle}", json=body)
        assert answer.status == 507
        assert "MiB" in answer.json["detail"]
        await daemon.call("DELETE", f"/v1/domains/{first}")
        assert (await daemon.call("PUT", f"/v1/domains/{handle}", json=body)).status == 201

    run(tmp_path, certificates, test, guest_memory=200 * MIB)


def test_debug_needs_permission(tmp_path: Path, certificates: Certificates) -> None:
    async def refused(daemon: Daemon) -> None:
        image = await daemon.upload(debug=True)
        body = {"name": "debug", "image": image, "nonce": "00" * 32}
        assert (await daemon.call("PUT", f"/v1/domains/{uuid.uuid4()}", json=body)).status == 422

    async def allowed(daemon: Daemon) -> None:
        await daemon.running(debug=True)

    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    run(tmp_path / "1", certificates, refused)
    run(tmp_path / "2", certificates, allowed, allow_debug=True)


def test_vmm_gets_a_bare_environment(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "x")

    async def test(daemon: Daemon) -> None:
        _, vmm = await daemon.awaiting()
        assert set(vmm.environment) <= {"PATH", "PYTHONPATH", "LC_CTYPE"}

    run(tmp_path, certificates, test)


def test_instances_differ(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        image = await daemon.upload()
        seen = set()
        for name in ("a", "b"):
            await daemon.create(image, name)
            load = await (await daemon.vmm()).request("load")
            seen |= {load["instance"], load["share"], load["cid"]}
        assert len(seen) == 6

    run(tmp_path, certificates, test)


def test_transitions() -> None:
    async def test() -> None:
        for path in ([State.LOADING, State.RUNNING], [State.ENCRYPTING], [State.SUCCEEDED]):
            lifecycle = Lifecycle()
            with pytest.raises(Exception, match="cannot go"):
                for state in path:
                    lifecycle.move(state)
        assert all(
            State.DESTROYING in after or state.final or state is State.DESTROYING
            for state, after in TRANSITIONS.items()
        )

    asyncio.run(test())
