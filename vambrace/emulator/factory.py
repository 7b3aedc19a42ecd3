"""A platform's life, by whoever has the machine at hand: the factory's step, renewed certificates, its end."""

from __future__ import annotations

from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest.image import sign_lifecycle
from vambrace.attest.owner import OwnerIdentity
from vambrace.attest.policy import NOT_PROVISIONED, SECURED, lifecycle_name
from vambrace.emulator.api import Api
from vambrace.emulator.build import Progress
from vambrace.emulator.fuse import Fuse
from vambrace.emulator.vendor import Vendor
from vambrace.errors import ServerError


def require_unlocked(fuse: Fuse) -> None:
    """Raises ``ServerError``: the factory's step was done, and is done once."""
    if fuse.lifecycle != NOT_PROVISIONED:
        raise ServerError(
            f"this machine has left the factory: its life cycle is {lifecycle_name(fuse.lifecycle)}",
            hint="'vambrace server reset' makes a new machine",
        )


def require_in_service(lifecycle: int) -> None:
    """Raises ``ServerError``: whoever may debug a machine may find its key, and could say that it is secured."""
    if lifecycle not in (NOT_PROVISIONED, SECURED):
        raise ServerError(
            f"this machine is out of service, its life cycle is {lifecycle_name(lifecycle)}: nobody certifies its key",
            hint="'vambrace server reset' makes a new machine",
        )


def begin(api: Api, authority: Vendor, progress: Progress, *, lock: bool) -> None:
    """What a new machine needs, or one that has lost its state disk; nothing for any other."""
    platform = api.get("/v1/platform")
    if platform["endorsed"]:
        return
    if platform["lifecycle"] in (NOT_PROVISIONED, SECURED):
        certify(api, authority, progress, lock=lock)
    else:
        progress(f"the platform's life cycle is {lifecycle_name(platform['lifecycle'])}: nobody endorses its key")


def complete(api: Api, authority: Vendor, progress: Progress, *, lock: bool) -> None:
    """Complete the factory's step where it was left without its lock."""
    if lock and api.get("/v1/platform")["lifecycle"] == NOT_PROVISIONED:
        certify(api, authority, progress, lock=True)


def certify(api: Api, authority: Vendor, progress: Progress, *, lock: bool) -> None:
    """Have the vendor certify the platform's key; with ``lock``, for ever secured.

    Raises ``ServerError`` for a machine that is out of service; and for a key in software, unless the vendor is for
    those: whoever has one could sign with it that it is in TrustZone.
    """
    platform = api.get("/v1/platform")
    require_in_service(platform["lifecycle"])
    if platform["insecure"] != authority.software:
        where = "in software" if platform["insecure"] else "in TrustZone"
        raise ServerError(f"this vendor certifies no key that is {where}", hint="see --insecure-no-trustzone")
    progress("the vendor endorses the platform key" + (" and locks the fuse" if lock else ""))
    certificate = authority.certify(bytes.fromhex(platform["platform_key"]))
    pem = certificate.public_bytes(Encoding.PEM)
    api.request("PUT", f"/v1/platform/endorsement?lock={int(lock)}", pem)


def own(api: Api, owner: OwnerIdentity, progress: Progress) -> None:
    """Whoever has the server at hand is the platform's owner: the key that Secure VMs' images are signed with."""
    if api.get("/v1/platform")["owner"] is None:
        progress("the platform gets its owner's key")
        api.request("PUT", "/v1/platform/owner", owner.certificate_pem.encode())


def retire(api: Api, owner: OwnerIdentity, state: str, progress: Progress) -> None:
    """Take the platform to ``state``, "debug" or "decommissioned", for ever, by its owner's word."""
    progress(f"the platform's owner takes it to {state}")
    platform = bytes.fromhex(api.get("/v1/platform")["platform_key"])
    api.request("PUT", "/v1/platform/lifecycle", sign_lifecycle(owner.key, platform, state))
