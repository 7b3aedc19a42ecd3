"""The platform's life cycle as the daemon sees it: the factory's lock, debug, the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from fake_trustzone import FakeTrustZone
from harness import Daemon, run
from harness_certificates import OTHER_KEY, Certificates

from vambrace.attest.cbor import encode
from vambrace.attest.cose import sign1
from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.image import sign_lifecycle
from vambrace.attest.owner import OwnerIdentity
from vambrace.errors import HostError, MessageRefused, TrustZoneError, UnknownRoot
from vambrace.host.platform import Platform


def test_lock_and_restart(tmp_path: Path, certificates: Certificates) -> None:
    async def test() -> None:
        session, chain = FakeTrustZone(), tmp_path / "chain.pem"
        platform = Platform(session, chain, certificates.vendor_root, insecure=False)
        with pytest.raises(HostError):
            platform.require_endorsed()
        await platform.install(certificates.endorse(platform.platform_key), lock=True)
        assert (platform.lifecycle, platform.endorsed) == (0x3000, True)
        platform.close()
        again = Platform(session, chain, certificates.vendor_root, insecure=False)
        assert (again.lifecycle, again.endorsed) == (0x3000, True)
        with pytest.raises(MessageRefused):
            await again.install(certificates.endorse(OTHER_KEY), lock=False)
        # Another vendor's word, for the right key: not even the lock is turned.
        stranger = VendorAuthority.create()
        foreign = stranger.certify(again.platform_key).public_bytes(Encoding.PEM) + stranger.certificate_pem
        with pytest.raises(UnknownRoot):
            await again.install(foreign, lock=True)
        assert again.endorsed
        again.close()
        fresh = FakeTrustZone()
        unlocked = Platform(fresh, tmp_path / "other.pem", certificates.vendor_root, insecure=False)
        foreign = stranger.certify(unlocked.platform_key).public_bytes(Encoding.PEM) + stranger.certificate_pem
        with pytest.raises(UnknownRoot):
            await unlocked.install(foreign, lock=True)
        assert (unlocked.lifecycle, unlocked.endorsed, fresh.lifecycle()) == (0x1000, False, 0x1000)
        unlocked.close()
        chain.write_text("damaged")
        damaged = Platform(session, chain, certificates.vendor_root, insecure=False)
        assert not damaged.endorsed
        damaged.close()

    asyncio.run(test())


def test_every_way_of_a_life_cycle(tmp_path: Path, certificates: Certificates) -> None:
    async def test() -> None:
        session = FakeTrustZone()
        platform = Platform(session, tmp_path / "chain.pem", certificates.vendor_root, insecure=False)
        first = platform.platform_key
        await platform.install(certificates.endorse(first), lock=True)
        await platform.leave(0x5000)
        # In debug it is another platform, which the vendor has not certified.
        assert (platform.lifecycle, platform.endorsed, platform.platform_key == first) == (0x5000, False, False)
        with pytest.raises(HostError, match="no endorsement"):
            platform.require_endorsed()
        with pytest.raises(MessageRefused, match="another key"):
            await platform.install(certificates.endorse(first), lock=False)
        # Whoever endorses it all the same does not secure it again.
        await platform.install(certificates.endorse(platform.platform_key), lock=True)
        assert (platform.lifecycle, platform.endorsed) == (0x5000, True)
        await platform.leave(0x6000)
        assert (platform.lifecycle, platform.endorsed) == (0x6000, False)
        with pytest.raises(HostError, match="decommissioned"):
            platform.require_endorsed()
        with pytest.raises(TrustZoneError):
            await platform.leave(0x5000)
        platform.close()

    asyncio.run(test())


def test_only_the_owner_ends_a_platform(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, stranger = (OwnerIdentity.create(tmp_path / name) for name in ("owner", "stranger"))
    monkeypatch.setattr("vambrace.host.__main__.InsecurePlatform", FakeTrustZone)

    def message(key: OwnerIdentity = owner, **changes: Any) -> bytes:
        return sign1(key.key, encode({"type": "lifecycle", "state": "debug", **changes}))

    async def test(daemon: Daemon) -> None:
        async def put(body: bytes) -> tuple[int, str]:
            answer = await daemon.call("PUT", "/v1/platform/lifecycle", data=body)
            return answer.status, answer.json.get("detail", "")

        view = (await daemon.get("/v1/platform")).json
        key = bytes.fromhex(view["platform_key"])
        assert await put(message(platform=key)) == (409, "this platform has no owner whose word could count")
        await daemon.provision(owner)
        view = (await daemon.get("/v1/platform")).json
        refused = {
            "is not by the platform owner": message(stranger, platform=key),
            "for another platform": message(platform=key[:-1] + bytes([key[-1] ^ 1])),
            "no state that an owner may choose": message(platform=key, state="secured"),
            "no state that": message(platform=key, state=[]),
            "something else than expected": message(platform=key, more=1),
            "cannot be read": b"nonsense",
            "is too long": b"x" * 5000,
        }
        for words, body in refused.items():
            status, said = await put(body)
            assert status == 403 and words in said, (words, status, said)
        # Not while somebody's evidence depends on it.
        realm = await daemon.create(await daemon.upload())
        status, said = await put(sign_lifecycle(owner.key, key, "decommissioned"))
        assert status == 409 and "there are" in said
        assert (await daemon.get("/v1/platform")).json == view
        await daemon.call("DELETE", f"/v1/domains/{realm}")
        await daemon.state(realm, "destroyed")
        order = sign_lifecycle(owner.key, key, "debug")
        assert (await put(order))[0] == 200
        opened = (await daemon.get("/v1/platform")).json
        assert (opened["lifecycle"], opened["endorsed"]) == (0x5000, False)
        # The order was for the platform that is no more.
        assert (await put(order))[0] == 403
        assert (await put(sign_lifecycle(owner.key, bytes.fromhex(opened["platform_key"]), "decommissioned")))[0] == 200
        assert (await daemon.get("/v1/platform")).json["lifecycle"] == 0x6000

    run(tmp_path, certificates, test)
