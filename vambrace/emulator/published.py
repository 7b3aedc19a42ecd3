"""What a vendor publishes beside its machines: for users, who verify them by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vambrace.attest.claims import Component
from vambrace.attest.references import publish
from vambrace.emulator import firmware
from vambrace.emulator.build import ServerBuild
from vambrace.emulator.vendor import Vendor
from vambrace.files import write_whole


@dataclass(frozen=True)
class Published:
    """The files in ``directory``."""

    directory: Path

    @property
    def vendor_root(self) -> Path:
        return self.directory / "vendor-root.pem"

    @property
    def references(self) -> Path:
        return self.directory / "reference-values.corim"

    @property
    def revocation_list(self) -> Path:
        return self.directory / "vendor.crl"

    def publish(self, built: ServerBuild, authority: Vendor) -> None:
        """The vendor's certificate, its revocation list, and the reference values of what was ``built``."""
        self.directory.mkdir(exist_ok=True)
        self.vendor_root.write_bytes(authority.certificate_pem)
        self.publish_revocations(authority)
        if built.firmware is not None:
            signer = built.firmware.signer
            components = [Component(name, bytes.fromhex(digest), signer) for name, digest in built.firmware.components]
            values = publish(components, authority, implementation_id=firmware.IMPLEMENTATION_ID)
            self.references.write_bytes(values)
        else:
            # What boots now is not what they describe.
            self.references.unlink(missing_ok=True)

    def publish_revocations(self, authority: Vendor) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        write_whole(self.revocation_list, authority.present_list(), mode=0o644)
