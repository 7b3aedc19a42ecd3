"""Domains of each class through the API: what starts them, what ends them, and what they must be signed by."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import DISK, MIB, PATIENCE, Daemon, Vmm, alive, run, soon
from harness_certificates import Certificates

from vambrace.attest.image import ImageStatement, public_key, sign_image, sign_successor
from vambrace.attest.owner import OwnerIdentity
from vambrace.classes import NORMAL, SECURE
from vambrace.config import Disk, Zone
from vambrace.host.volumes import Volumes

#: A configuration of each class, as changes to the harness's Realm.
SECURE_CHANGES: dict[str, Any] = {
    "kind": SECURE,
    "zones": (Zone("system", 96 * MIB, 0), Zone("analysis", 16 * MIB, 0), Zone("report", 16 * MIB, 0)),
    "verdict_seconds": 120,
}


@pytest.fixture
def keeper(tmp_path: Path) -> OwnerIdentity:
    """The platform's owner."""
    return OwnerIdentity.create(tmp_path / "platform-owner")


async def refused(daemon: Daemon, image: str, status: int, words: str) -> None:
    """Creating a domain of this image fails, with the reason and a hint, and leaves nothing of it."""
    free = (await daemon.get("/v1/partition")).json
    body = {"name": "vault", "image": image, "nonce": os.urandom(32).hex()}
    answer = await daemon.call("PUT", "/v1/domains/00000000-0000-4000-8000-000000000001", json=body)
    assert (answer.status, "\n" in answer.json["detail"]) == (status, False), answer.body
    assert words in answer.json["detail"] and answer.json["hint"]
    assert (await daemon.get("/v1/domains")).json["domains"] == []
    assert (await daemon.get("/v1/partition")).json == free


async def signed(daemon: Daemon, key: OwnerIdentity, **changes: Any) -> str:
    """A Secure VM's bundle, signed over what the fake VMM measures it as; ``changes`` of what is said."""
    statement = {"kind": "secure", "hash": "sha-256", "config": daemon.config(**SECURE_CHANGES).encode()} | changes
    measurement = statement.pop("measurement", None) or daemon.measurement(**SECURE_CHANGES)
    said = ImageStatement.of(statement["kind"], statement["hash"], measurement, statement["config"])
    return await daemon.upload(signature=sign_image(key.key, said), **SECURE_CHANGES)


def test_a_secure_vm_from_signature_to_end(
    tmp_path: Path, certificates: Certificates, keeper: OwnerIdentity
) -> None:
    async def test(daemon: Daemon) -> None:
        await daemon.provision(keeper)
        handle = await daemon.create(await signed(daemon, keeper), "vault")
        vmm = await daemon.vmm()
        load = await vmm.request("load")
        assert "share" not in load and len(load["instance"]) == 32  # nothing to encrypt with; an instance to attest
        await vmm.request("start")
        view = await daemon.state(handle, "running")
        assert (view["class"], view["token"], view["deadline"]) == ("secure", True, None)
        assert "awaiting-verdict" not in [event["name"] for event in view["events"]]
        assert view["measurement"] == daemon.measurement(**SECURE_CHANGES).hex()
        assert (await daemon.get(f"/v1/domains/{handle}/token")).status == 200
        assert (await vmm.ask("report", state="ready"))["ok"]
        # Orders about encryption and messages are a Realm's.
        for op in ("encrypt", "change", "auto", "sample", "reuse", "connect", "messages", "broker", "seal"):
            answer = await vmm.ask(op, message="", zone=0, endpoint=0, stream=0, version=0)
            assert not answer["ok"] and "only a Realm" in answer["error"]
        # Its applications have succeeded: it goes on.
        assert (await vmm.ask("report", state="succeeded"))["ok"]
        assert (await vmm.ask("attest", challenge="00" * 64))["ok"]
        view = (await daemon.get(f"/v1/domains/{handle}")).json
        assert (view["state"], view["agent"]) == ("running", "succeeded")
        assert (await daemon.verdict_bytes(handle, b"")).status == 409
        assert (await daemon.get(f"/v1/domains/{handle}/console")).status == 409
        assert (await daemon.call("DELETE", f"/v1/domains/{handle}")).json["state"] == "destroyed"

    run(tmp_path, certificates, test)


def test_what_is_not_signed_by_the_platform_s_owner_is_refused(
    tmp_path: Path, certificates: Certificates, keeper: OwnerIdentity
) -> None:
    stranger = OwnerIdentity.create(tmp_path / "stranger")

    async def test(daemon: Daemon) -> None:
        good = await signed(daemon, keeper)
        await refused(daemon, good, 503, "no owner whose signature")
        await daemon.provision(keeper)
        await refused(daemon, await daemon.upload(**SECURE_CHANGES), 403, "is not signed")
        await refused(daemon, await signed(daemon, stranger), 403, "not by the platform owner")
        other = daemon.config(**SECURE_CHANGES | {"cmdline": "loud"}).encode()
        await refused(daemon, await signed(daemon, keeper, config=other), 403, "another image's")
        await refused(daemon, await signed(daemon, keeper, kind="realm"), 403, "another image's")
        await refused(daemon, await signed(daemon, keeper, hash="sm3"), 403, "another image's")
        await refused(daemon, await daemon.upload(signature=b"\xd2\x84", **SECURE_CHANGES), 403, "cannot be read")

    run(tmp_path, certificates, test)


def test_what_was_loaded_is_compared_with_the_signature(
    tmp_path: Path, certificates: Certificates, keeper: OwnerIdentity
) -> None:
    """The configuration is what was signed, the kernel in the store is another: it never runs."""

    async def test(daemon: Daemon) -> None:
        await daemon.provision(keeper)
        handle = await daemon.create(await signed(daemon, keeper, measurement=bytes(32)), "vault")
        vmm = await daemon.vmm()
        await vmm.request("load")
        view = await daemon.state(handle, "failed")
        assert "not what the platform's owner signed" in view["reason"]
        assert (view["executed"], view["token"], view["measurement"]) == (False, False, None)
        await vmm.request("destroy")

    run(tmp_path, certificates, test)


def test_a_realm_may_be_signed_and_is_checked_then(
    tmp_path: Path, certificates: Certificates, keeper: OwnerIdentity
) -> None:
    async def test(daemon: Daemon) -> None:
        await daemon.provision(keeper)
        measurement = daemon.measurement()
        statement = ImageStatement.of("realm", "sha-256", measurement, daemon.config().encode())
        wrong = ImageStatement.of("secure", "sha-256", measurement, daemon.config().encode())
        await refused(daemon, await daemon.upload(signature=sign_image(keeper.key, wrong)), 403, "another image's")
        handle = await daemon.create(await daemon.upload(signature=sign_image(keeper.key, statement)))
        await (await daemon.vmm()).request("load")
        await daemon.state(handle, "awaiting-verdict")

    run(tmp_path, certificates, test)


def test_a_host_may_demand_signatures_of_realms(
    tmp_path: Path, certificates: Certificates, keeper: OwnerIdentity
) -> None:
    async def test(daemon: Daemon) -> None:
        await daemon.provision(keeper)
        await refused(daemon, await daemon.upload(), 403, "is not signed")

    run(tmp_path, certificates, test, signed_only=True)


def test_the_platform_owner_s_key_is_set_once_and_handed_over(
    tmp_path: Path, certificates: Certificates, keeper: OwnerIdentity
) -> None:
    second, third = (OwnerIdentity.create(tmp_path / name) for name in ("second", "third"))

    async def put(daemon: Daemon, body: bytes) -> int:
        return (await daemon.call("PUT", "/v1/platform/owner", data=body)).status

    async def test(daemon: Daemon) -> None:
        platform = bytes.fromhex((await daemon.get("/v1/platform")).json["platform_key"])
        handover = sign_successor(keeper.key, platform, public_key(second.key), 1)
        assert (await daemon.get("/v1/platform")).json["owner"] is None
        assert await put(daemon, handover) == 409
        assert await put(daemon, b"-----BEGIN nonsense") == 422
        await daemon.provision(keeper)
        first = (await daemon.get("/v1/platform")).json["owner"]
        assert await put(daemon, keeper.certificate_pem.encode()) == 200  # the same once more changes nothing
        assert await put(daemon, second.certificate_pem.encode()) == 409
        assert await put(daemon, sign_successor(second.key, platform, public_key(second.key), 1)) == 403
        assert await put(daemon, sign_successor(keeper.key, platform, public_key(second.key), 2)) == 403
        elsewhere = sign_successor(keeper.key, b"another platform", public_key(second.key), 1)
        assert await put(daemon, elsewhere) == 403  # the same owner's other platform
        assert (await daemon.get("/v1/platform")).json["owner"] == first
        assert await put(daemon, handover) == 200
        assert await put(daemon, handover) == 403  # used
        assert await put(daemon, sign_successor(second.key, platform, public_key(keeper.key), 2)) == 200
        assert await put(daemon, handover) == 403  # and not again, though its signer is back
        assert await put(daemon, sign_successor(keeper.key, platform, public_key(third.key), 3)) == 200
        await daemon.stop()
        await daemon.start()
        view = (await daemon.get("/v1/platform")).json
        assert view["owner_changes"] == 3 and view["owner"] not in (None, first)
        # A file that cannot be read leaves nobody who could sign, and nobody who could take over.
        await daemon.stop()
        (daemon.settings.state / "platform-owner.json").write_text("{}")
        await daemon.start()
        assert (await daemon.get("/v1/platform")).json["owner"] is None
        assert await put(daemon, keeper.certificate_pem.encode()) == 409

    run(tmp_path, certificates, test)


def test_of_two_who_would_own_the_platform_one_does(
    tmp_path: Path, certificates: Certificates, keeper: OwnerIdentity
) -> None:
    second = OwnerIdentity.create(tmp_path / "second")

    async def test(daemon: Daemon) -> None:
        bodies = [one.certificate_pem.encode() for one in (keeper, second)]
        answers = await asyncio.gather(*(daemon.call("PUT", "/v1/platform/owner", data=body) for body in bodies))
        assert sorted(answer.status for answer in answers) == [200, 409]
        told = next(answer.json["owner"] for answer in answers if answer.status == 200)
        assert (await daemon.get("/v1/platform")).json["owner"] == told

    run(tmp_path, certificates, test)


# Normal VMs


def normal(**changes: Any) -> dict[str, Any]:
    return {
        "kind": NORMAL,
        "owner": "",
        "applications": (),
        "zones": (Zone("system", 128 * MIB, 0),),
        "disks": (Disk("root", hashlib.sha256(DISK).hexdigest(), len(DISK)),),
        "verdict_seconds": 120,
        **changes,
    }


async def started(daemon: Daemon, **changes: Any) -> tuple[str, Vmm]:
    handle = await daemon.create(await daemon.upload(**normal(**changes)), "debian")
    vmm = await daemon.vmm()
    load = await vmm.request("load")
    assert not {"share", "instance"} & load.keys()
    assert "volume:root" in load["descriptors"] and "vhost-vsock" not in load["descriptors"]
    await vmm.request("start")
    await daemon.state(handle, "running")
    return handle, vmm


def read_disk_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free there stays so for the store: others write to the same disk meanwhile."""
    status = os.statvfs(path)
    monkeypatch.setattr("vambrace.host.store.os.statvfs", lambda path: status)


def test_a_normal_vm_needs_no_trust_and_stops_when_it_is_switched_off(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(daemon: Daemon) -> None:
        read_disk_once(tmp_path, monkeypatch)
        await daemon.stop()
        (daemon.settings.state / "endorsement.pem").unlink()
        await daemon.start(endorse=False)
        free = (await daemon.get("/v1/host")).json["storage"]["free"]
        handle, vmm = await started(daemon)
        volumes = daemon.settings.state / "volumes"
        assert (volumes / handle / "root").read_bytes() == DISK
        view = (await daemon.get(f"/v1/domains/{handle}")).json
        assert (view["class"], view["instance"], view["measurement"], view["token"]) == ("normal", None, None, False)
        for path in ("token", "channel"):
            assert (await daemon.get(f"/v1/domains/{handle}/{path}")).status == 409
        assert (await daemon.verdict_bytes(handle, b"")).status == 409
        await vmm.emit(event="ended", reason="poweroff", detail="", ran=1.0)
        await vmm.emit_exit()
        view = await daemon.state(handle, "stopped")
        assert (view["reason"], view["executed"]) == ("powered off", True)
        assert list(volumes.iterdir()) == []
        assert (await daemon.get("/v1/host")).json["storage"]["free"] == free

    run(tmp_path, certificates, test)


def test_a_reset_starts_it_anew_with_its_disks(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vambrace.host.normal.RESTART_SECONDS", 0.0)

    async def test(daemon: Daemon) -> None:
        handle, first = await started(daemon)
        disk = daemon.settings.state / "volumes" / handle / "root"
        disk.write_bytes(b"x" * len(DISK))
        await first.emit(event="ended", reason="reset", detail="", ran=1.0)
        await first.emit_exit()
        second = await daemon.vmm()
        await second.request("load")
        await second.request("start")
        assert first.pid != second.pid and not alive(first.pid)
        assert disk.read_bytes() == b"x" * len(DISK)
        view = (await daemon.get(f"/v1/domains/{handle}")).json
        assert view["state"] == "running"
        # What happens to the one that runs now ends the domain.
        await second.emit_exit()
        assert (await daemon.state(handle, "failed"))["reason"] == "the VMM process ended"
        assert [event["name"] for event in (await daemon.get(f"/v1/domains/{handle}")).json["events"]].count(
            "restarted"
        ) == 1

    run(tmp_path, certificates, test)


def test_a_guest_that_resets_itself_at_once_starts_again(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the daemon hears of it before it knows that the new VMM runs. Its record does not grow with that."""
    monkeypatch.setattr("vambrace.host.normal.RESTART_SECONDS", 0.0)

    async def test(daemon: Daemon) -> None:
        handle, vmm = await started(daemon)
        for _ in range(3):
            await vmm.emit(event="ended", reason="reset", detail="", ran=0.0)
            await vmm.emit_exit()
            vmm = await daemon.vmm()
            await vmm.request("load")
            # The request that follows finds this before its answer.
            await vmm.emit(event="ended", reason="reset", detail="", ran=0.0)
            await vmm.request("start")
        await (await daemon.vmm()).request("load")
        assert (await daemon.get(f"/v1/domains/{handle}")).json["state"] == "running"

    run(tmp_path, certificates, test)


def test_what_a_guest_brings_about_is_not_remembered_for_ever(
    tmp_path: Path, certificates: Certificates, keeper: OwnerIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vambrace.host.domain.NOTES_KEPT", 3)

    async def test(daemon: Daemon) -> None:
        await daemon.provision(keeper)
        handle = await daemon.create(await signed(daemon, keeper), "vault")
        vmm = await daemon.vmm()
        for op in ("load", "start"):
            await vmm.request(op)
        await daemon.state(handle, "running")
        for state in ("ready", *("failed", "succeeded") * 4):
            assert (await vmm.ask("report", state=state))["ok"]
        names = [event["name"] for event in (await daemon.get(f"/v1/domains/{handle}")).json["events"]]
        assert names[:3] == ["created", "loading", "running"]
        assert names[3:] == ["agent succeeded", "agent failed", "agent succeeded"]

    run(tmp_path, certificates, test)


def test_who_is_destroyed_while_its_disks_are_copied_leaves_none(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, stopped, go_on, ended = (threading.Event() for _ in range(4))
    stop = Volumes.stop

    def slowly(file: int) -> Iterator[tuple[int, bytes]]:
        begun.set()
        go_on.wait(PATIENCE)
        try:
            yield 0, b"x" * 512
        finally:
            ended.set()

    def stopping(volumes: Volumes, uuid: str) -> None:
        stop(volumes, uuid)
        stopped.set()

    monkeypatch.setattr("vambrace.host.volumes._chunks", slowly)
    monkeypatch.setattr(Volumes, "stop", stopping)

    async def test(daemon: Daemon) -> None:
        handle = await daemon.create(await daemon.upload(**normal()), "debian")
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        ending = asyncio.create_task(daemon.call("DELETE", f"/v1/domains/{handle}"))
        assert await asyncio.to_thread(stopped.wait, PATIENCE)
        # Who comes to the console now would wait for ever.
        answer = await daemon.get(f"/v1/domains/{handle}/console")
        assert answer.status == 409 and "being destroyed" in answer.json["detail"]
        go_on.set()
        assert (await ending).json["state"] == "destroyed"
        assert ended.is_set()  # nobody writes any more
        assert list((daemon.settings.state / "volumes").iterdir()) == []

    run(tmp_path, certificates, test)


def test_disks_that_do_not_fit_are_refused(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(daemon: Daemon) -> None:
        image = await daemon.upload(**normal())
        monkeypatch.setattr("vambrace.host.store.Store.free", lambda store: len(DISK) - 1)
        await refused(daemon, image, 507, "MiB of disks")
        monkeypatch.undo()
        # What a volume may still grow by is set aside: it is not promised twice.
        read_disk_once(tmp_path, monkeypatch)
        free = (await daemon.get("/v1/host")).json["storage"]["free"]
        monkeypatch.setattr("vambrace.host.volumes.Volumes._allocated", lambda volumes, uuid: 0)
        await started(daemon)
        assert free - (await daemon.get("/v1/host")).json["storage"]["free"] == len(DISK)

    run(tmp_path, certificates, test)


def test_the_operator_s_console(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await started(daemon)
        await vmm.emit(event="console", data=base64.b64encode(b"login: ").decode())
        async with daemon.session.ws_connect(f"/v1/domains/{handle}/console") as socket:
            assert await soon(socket.receive_bytes()) == b"login: "
            await socket.send_bytes(b"root\r")
            assert base64.b64decode((await vmm.request("console"))["data"]) == b"root\r"
            await vmm.emit(event="console", data=base64.b64encode(b"Password: ").decode())
            assert await soon(socket.receive_bytes()) == b"Password: "
            # Who comes later sees what was printed last.
            async with daemon.session.ws_connect(f"/v1/domains/{handle}/console") as other:
                assert await soon(other.receive_bytes()) == b"login: Password: "
            assert (await daemon.call("DELETE", f"/v1/domains/{handle}")).status == 200
            await soon(socket.receive())
            assert socket.closed

    run(tmp_path, certificates, test)


def test_a_realm_s_console_is_nobody_s(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.running()
        await vmm.emit(event="console", data=base64.b64encode(b"secret").decode())
        answer = await daemon.get(f"/v1/domains/{handle}/console")
        assert answer.status == 409 and "nobody's" in answer.json["detail"]

    run(tmp_path, certificates, test)


def test_who_looks_slowly_misses_some(tmp_path: Path, certificates: Certificates) -> None:
    from vambrace.errors import CapacityError
    from vambrace.host.console import BEHIND, KEPT, VIEWERS, Terminal

    async def test() -> None:
        typed: list[bytes] = []

        async def send(data: bytes) -> None:
            typed.append(data)

        terminal = Terminal(send)
        viewers = [terminal.open() for _ in range(VIEWERS)]
        with pytest.raises(CapacityError):
            terminal.open()
        for number in range(20):
            terminal.feed(bytes([number]) * (64 << 10))
        data = await viewers[0].read()
        assert len(data) == BEHIND and data[-1] == 19
        terminal.close(viewers[1])
        late = terminal.open()
        assert len(await late.read()) == KEPT

    asyncio.run(test())
