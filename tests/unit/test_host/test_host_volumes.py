"""Disks that a domain writes to, at the host: whose they are, how long they last, and what is set aside for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import MIB, Daemon, run
from harness_certificates import Certificates

from vambrace.attest.owner import OwnerIdentity
from vambrace.errors import CapacityError, Conflict, NotFound, UsageError
from vambrace.host.lasting import Lasting
from vambrace.release import Sealing
from vambrace.storage import Scratch, Storage, Volume

STORAGE = Storage(
    (Scratch("analysis", 32 * MIB),),
    (Volume("records", "report", 64 * MIB, "/data/records", "sealed"),),
)
OWNER, OTHER = "ab" * 64, "cd" * 64


def with_storage(storage: Storage = STORAGE, **changes: Any) -> dict[str, Any]:
    return {"storage": storage, "sealing": Sealing(), **changes}


def test_a_volume_outlives_its_domain_and_scratch_does_not(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        state = daemon.settings.state
        owner = certificates.owner.personalization().hex()
        free = (await daemon.get("/v1/host")).json["storage"]["free"]
        handle, _ = await daemon.awaiting(**with_storage())
        (volume,) = (await daemon.get("/v1/volumes")).json["volumes"]
        assert (volume["owner"], volume["name"], volume["size"], volume["domain"]) == (
            owner, "records", 64 * MIB, handle,
        )  # fmt: skip
        # They take next to nothing yet, but nobody else gets the space.
        assert volume["taken"] < MIB
        left = (await daemon.get("/v1/host")).json["storage"]["free"]
        assert 90 * MIB < free - left < 110 * MIB
        scratch = state / "volumes" / handle / "scratch-0"
        disk = state / "lasting" / owner / "records.disk"
        assert scratch.stat().st_size == 32 * MIB and disk.stat().st_size == 64 * MIB
        assert {path.stat().st_mode & 0o777 for path in (scratch, disk)} == {0o600}
        refused = await daemon.call("DELETE", f"/v1/volumes/{owner}/records")
        assert refused.status == 409 and handle in refused.json["detail"]
        disk.write_bytes(b"kept".ljust(64 * MIB, b"\0"))

        await daemon.call("DELETE", f"/v1/domains/{handle}")
        assert not scratch.exists() and disk.read_bytes()[:4] == b"kept"
        await daemon.stop()
        await daemon.start()
        (volume,) = (await daemon.get("/v1/volumes")).json["volumes"]
        assert volume["domain"] is None and disk.read_bytes()[:4] == b"kept"
        assert (await daemon.call("DELETE", f"/v1/volumes/{owner}/records")).status == 204
        assert (await daemon.get("/v1/volumes")).json == {"volumes": []} and not disk.exists()
        assert (await daemon.call("DELETE", f"/v1/volumes/{owner}/records")).status == 404

    run(tmp_path, certificates, test)


def test_one_domain_has_it_at_a_time(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        first, _ = await daemon.awaiting(**with_storage())
        image = await daemon.upload(**with_storage(name="second"))
        body = {"name": "second", "image": image, "nonce": "00" * 32}
        second = "8e5b7dd8-5c32-4c0a-9a6c-3a1b0e1a2f10"
        refused = await daemon.call("PUT", f"/v1/domains/{second}", json=body)
        assert refused.status == 409 and first in refused.json["detail"]
        assert "one domain" in refused.json["hint"]
        # The one that was refused has left nothing behind: its scratch space is free, and its name and UUID, too.
        assert [path.name for path in (daemon.settings.state / "volumes").iterdir()] == [first]
        await daemon.call("DELETE", f"/v1/domains/{first}")
        assert (await daemon.call("PUT", f"/v1/domains/{second}", json=body)).status == 201
        await (await daemon.vmm()).request("load")

    run(tmp_path, certificates, test)


def test_another_owner_has_another_volume_of_that_name(tmp_path: Path, certificates: Certificates) -> None:
    other = OwnerIdentity.create(tmp_path / "other")

    async def test(daemon: Daemon) -> None:
        await daemon.awaiting(**with_storage())
        await daemon.awaiting(**with_storage(owner=other.certificate_pem, name="other"))
        owners = [volume["owner"] for volume in (await daemon.get("/v1/volumes")).json["volumes"]]
        assert sorted(owners) == sorted(each.personalization().hex() for each in (certificates.owner, other))

    run(tmp_path, certificates, test)


def test_the_api(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        path = f"/v1/volumes/{certificates.owner.personalization().hex()}/records"
        for _ in range(2):
            made = await daemon.call("PUT", path, json={"size": 64 * MIB})
            assert made.status == 200 and made.json["size"] == 64 * MIB and made.json["domain"] is None
        assert (await daemon.call("PUT", path, json={"size": 32 * MIB})).status == 409
        for size in (1, 0, -1, True, "64M", None, 1 << 41, 32 * MIB + 1):
            assert (await daemon.call("PUT", path, json={"size": size})).status == 400, size
        for body in ({}, [], {"size": MIB, "more": 1}):
            assert (await daemon.call("PUT", path, json=body)).status == 400
        for bad in ("/v1/volumes/xyz/records", f"/v1/volumes/{OWNER}/..%2Fa", f"/v1/volumes/{'AB' * 64}/a"):
            assert (await daemon.call("PUT", bad, json={"size": 64 * MIB})).status == 400
            assert (await daemon.call("DELETE", bad)).status == 404
        assert len((await daemon.get("/v1/volumes")).json["volumes"]) == 1
        # A domain whose image says another size.
        image = await daemon.upload(**with_storage(Storage((), (STORAGE.volumes[0].replace(size=32 * MIB),))))
        body = {"name": "patients", "image": image, "nonce": "00" * 32}
        refused = await daemon.call("PUT", "/v1/domains/8e5b7dd8-5c32-4c0a-9a6c-3a1b0e1a2f10", json=body)
        assert refused.status == 409 and "64 MiB" in refused.json["detail"]

    run(tmp_path, certificates, test)


def test_what_does_not_fit_is_not_made(tmp_path: Path) -> None:
    free = 100 * MIB
    lasting = Lasting(tmp_path / "lasting", lambda: free - lasting.outstanding)
    lasting.create(OWNER, "first", 64 * MIB)
    with pytest.raises(CapacityError, match="no space on the host for 64 MiB"):
        lasting.create(OTHER, "second", 64 * MIB)
    two = (Volume("third", "a", 32 * MIB, "/data/a", "sealed"), Volume("fourth", "a", 32 * MIB, "/data/b", "sealed"))
    with pytest.raises(CapacityError):
        lasting.attach("uuid", OWNER, two)
    assert [volume.name for volume in lasting.volumes()] == ["first"]
    lasting.attach("uuid", OWNER, two[:1])
    assert lasting.outstanding == 96 * MIB
    with pytest.raises(Conflict, match="in use by domain uuid"):
        lasting.attach("another", OWNER, two[:1])
    with pytest.raises(Conflict, match="uuid has the volume third"):
        lasting.remove(OWNER, "third")
    lasting.release("uuid")
    lasting.release("uuid")
    lasting.remove(OWNER, "third")
    with pytest.raises(NotFound):
        lasting.remove(OWNER, "third")
    with pytest.raises(UsageError):
        lasting.create("../..", "name", 64 * MIB)


def test_an_owner_has_a_bounded_number(tmp_path: Path) -> None:
    lasting = Lasting(tmp_path / "lasting", lambda: 1 << 40)
    for number in range(63):
        lasting.create(OWNER, f"v{number}", 32 * MIB)
    with pytest.raises(CapacityError, match="this owner has 63 volumes, of at most 64"):
        two = [Volume(name, "a", 32 * MIB, f"/data/{name}", "sealed") for name in ("a", "b")]
        lasting.attach("uuid", OWNER, two)
    assert len(lasting.volumes()) == 63, "all of them, or none"
    lasting.create(OWNER, "v63", 32 * MIB)
    with pytest.raises(CapacityError, match="this owner has 64 volumes"):
        lasting.create(OWNER, "more", 32 * MIB)
    lasting.create(OTHER, "more", 32 * MIB)
