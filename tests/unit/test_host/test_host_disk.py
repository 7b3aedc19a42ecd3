"""The state disk fails or was tampered with: no Realm dies of it, and no daemon."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, run
from harness_certificates import Certificates

from vambrace.errors import CapacityError, ImageError, NotFound
from vambrace.host import store as stores
from vambrace.host.store import DomainRecord, Store, StoredImage


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Every write of the store fails as on a full disk."""

    def write(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "write_whole", write)
        yield


def test_an_order_on_a_full_disk(tmp_path: Path, certificates: Certificates) -> None:
    """Refused whole: nothing is applied, its counter is not used, and the Realm goes on."""

    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.running()
        instance = bytes.fromhex((await daemon.get(f"/v1/domains/{handle}")).json["instance"])
        order = base64.b64encode(certificates.owner.sign_percent(instance, 2, 35, 7)).decode()
        with full_disk():
            reply = await vmm.ask("encrypt", message=order)
            assert not reply["ok"] and "No space" in reply["error"] and "disk" in reply["hint"]
        await daemon.state(handle, "running")
        # The very same order, once there is room.
        await vmm.tell("encrypt", message=order)
        request = await vmm.request("encrypt")
        assert (request["zone"], request["percent"]) == (2, 35)
        assert (await vmm.hear())["ok"]
        assert not (await vmm.ask("encrypt", message=order))["ok"], "replayed"
        record = json.loads((daemon.settings.state / "domains" / f"{handle}.json").read_bytes())
        assert record["counter"] == 7

    run(tmp_path, certificates, test)


def test_a_realm_on_a_full_disk(tmp_path: Path, certificates: Certificates) -> None:
    """That its agent is ready need not be written; to be destroyed needs no disk; a new Realm says why it fails."""

    async def test(daemon: Daemon) -> None:
        handle, vmm = await daemon.awaiting()
        image = (await daemon.get(f"/v1/domains/{handle}")).json["image"]
        assert (await daemon.verdict(handle, "yes")).status == 200
        await vmm.request("start")
        await daemon.state(handle, "running")
        with full_disk():
            assert (await vmm.ask("report", state="ready"))["ok"]
            assert (await vmm.ask("identity"))["ok"]
            await daemon.state(handle, "running")
            assert (await daemon.call("DELETE", f"/v1/domains/{handle}")).json["state"] == "destroyed"
            view = await daemon.state(await daemon.create(image), "failed")
            assert "No space" in view["reason"]

    run(tmp_path, certificates, test)


def test_the_store_says_that_the_disk_is_full(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = DomainRecord(UUID, "patients", "00" * 32, "00" * 32, created=time.time())
    store.save(record)
    record.counter = 5
    with full_disk(), pytest.raises(CapacityError) as caught:
        store.save(record)
    assert caught.value.hint
    assert Store(tmp_path).records()[0].counter == -1
    with full_disk():
        # A start does not depend on it either.
        assert [found.state for found in store.recover()] == ["failed"]


def test_images_are_unpacked_one_after_the_other(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds the space that is left when those before it are on the disk."""
    unpack, inside, most = Store.add_image, 0, 0

    def slowly(store: Store, digest: str, upload: Path) -> StoredImage:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.1)
        try:
            return unpack(store, digest, upload)
        finally:
            inside -= 1

    monkeypatch.setattr(Store, "add_image", slowly)

    async def test(daemon: Daemon) -> None:
        bundles = [daemon.bundle(name=f"image-{number}") for number in range(3)]
        sent = [daemon.call("PUT", f"/v1/images/{digest}", data=data) for digest, data in bundles]
        assert [answer.status for answer in await asyncio.gather(*sent)] == [201] * 3
        assert most == 1 and len((await daemon.get("/v1/images")).json["images"]) == 3

    run(tmp_path, certificates, test)


@pytest.mark.parametrize("text", ["{", "[]", "7", "{}", '{"name": "a", "size": [], "stored": 1.0}', "[" * 100_000])
def test_a_damaged_image_says_so(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    digest = "00" * 32
    (store.images / digest).mkdir()
    (store.images / digest / "image.json").write_text(text)
    with pytest.raises(ImageError, match="damaged") as caught:
        store.image(digest)
    assert caught.value.hint
    store.delete_image(digest)
    with pytest.raises(NotFound):
        store.image(digest)


UUID = "8e5b7dd8-5c32-4c0a-9a6c-3a1b0e1a2f10"

WRONG: dict[str, Any] = {
    "vmm_pid": "12",
    "vmm_started": None,
    "created": "yesterday",
    "counter": 1.5,
    "memory": True,
    "executed": 1,
    "name": 7,
    "events": [1],
    "state": "asleep",
    "uuid": "another",
    "instance": [],
}


@pytest.mark.parametrize("key", [*WRONG, "not finite", "not JSON", "deep", "a list", "unknown key", "event", "folder"])
def test_a_damaged_record_is_put_aside(tmp_path: Path, certificates: Certificates, key: str) -> None:
    """The daemon starts, knows the others, and keeps the damaged file for whoever looks into it."""
    good = {"uuid": UUID, "name": "patients", "image": "00" * 32, "nonce": "00" * 32, "created": 1.0}
    whole: dict[str, str] = {
        "not finite": json.dumps({**good, "created": float("nan")}),
        "not JSON": "{",
        "deep": "[" * 100_000,
        "a list": "[]",
        "unknown key": json.dumps({**good, "more": 1}),
        "event": json.dumps({**good, "events": [{"name": "created", "step": 401, "at": "now"}]}),
    }
    realms = tmp_path / "state" / "domains"
    realms.mkdir(parents=True)
    damaged = realms / f"{UUID}.json"
    if key == "folder":
        damaged.mkdir()
    else:
        damaged.write_text(whole.get(key) or json.dumps({**good, key: WRONG.get(key)}))
    other = "ffffffff-5c32-4c0a-9a6c-3a1b0e1a2f10"
    (realms / f"{other}.json").write_text(json.dumps({**good, "uuid": other}))

    async def test(daemon: Daemon) -> None:
        known = (await daemon.get("/v1/domains")).json["domains"]
        assert [realm["uuid"] for realm in known] == [other]
        assert damaged.with_suffix(".damaged").exists() and not damaged.exists()

    run(tmp_path, certificates, test)
