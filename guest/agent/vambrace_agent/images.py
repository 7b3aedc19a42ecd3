"""Disks of the image behind base and applications: under dm-verity, and some of them encrypted (docs/volumes.md).

The root hash is that of what is read, so a key that is not the disk's, and a disk that was changed, are seen.
"""

from __future__ import annotations

from vambrace_agent import AgentError
from vambrace_agent.devicemapper import SECTOR, Device
from vambrace_agent.release import Broker
from vambrace_agent.settings import Image
from vambrace_agent.storage import BLOCK, read
from vambrace_agent.system import MS_NODEV, MS_NOSUID, MS_RDONLY, call

KEY_BYTES = 64


def open_image(image: Image, broker: Broker | None) -> str:
    """The device with the file system of ``image``, whose key, where it has one, comes from ``broker``. Raises
    ``AgentError``."""
    try:
        if not image.key:
            return _verified(image, image.device)
        plain = _decrypted(image, broker)
        try:
            return _verified(image, plain.path)
        except AgentError:
            plain.remove()
            raise
    except AgentError as error:
        raise AgentError(f"disk {image.name}: {error}") from None


def mount_image(image: Image, broker: Broker | None, folder: str) -> None:
    """Open ``image`` and mount it at ``folder``, to read. Raises ``AgentError``."""
    path = open_image(image, broker)
    try:
        call("mount", path.encode(), folder.encode(), b"erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, None)
    except OSError as error:
        raise AgentError(f"disk {image.name}: it cannot be mounted: {error.strerror}") from None


def _decrypted(image: Image, broker: Broker | None) -> Device:
    if broker is None:
        raise AgentError("there is no broker")
    with broker.session() as session:
        _, key = session.resource(image.key)
    if len(key) != KEY_BYTES:
        raise AgentError("what the broker has is no key of a disk")
    table = f"aes-xts-plain64 {key.hex()} 0 {image.device} 0 2 sector_size:{BLOCK} iv_large_sectors"
    return Device(f"{image.name}-plain", image.size // SECTOR, "crypt", table, read_only=True)


def _verified(image: Image, path: str) -> str:
    name, sectors = f"{image.name}-whole", image.blocks * BLOCK // SECTOR
    table = f"1 {path} {path} {BLOCK} {BLOCK} {image.blocks} {image.blocks} sha256 {image.root} {image.salt}"
    if image.key:
        # First so that a wrong key can be told.
        trial = Device(name, sectors, "verity", table, read_only=True)
        try:
            read(trial.path, 0, BLOCK)
        except OSError:
            raise AgentError("it is not what was measured, or the broker's key is another disk's") from None
        finally:
            trial.remove()
    # A changed block ends the machine: who serves the disk must not choose which reads fail.
    return Device(name, sectors, "verity", f"{table} 1 panic_on_corruption", read_only=True).path
