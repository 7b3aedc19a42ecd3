"""TrustZone with software keys that can be locked, and that is the same platform again after a restart."""

from __future__ import annotations

from vambrace.trustzone.insecure import LIFECYCLE, InsecurePlatform

SECURED = 0x3000


class FakeTrustZone(InsecurePlatform):
    def __init__(self) -> None:
        super().__init__()
        self.secured = False

    def lifecycle(self) -> int:
        return SECURED if self.secured else LIFECYCLE

    def lock(self) -> None:
        self.secured = True
