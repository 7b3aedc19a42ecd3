"""TrustZone with software keys that can be locked, and that is the same platform again after a restart."""

from __future__ import annotations

from vambrace.attest.policy import NOT_PROVISIONED, SECURED
from vambrace.trustzone.insecure import InsecurePlatform


class FakeTrustZone(InsecurePlatform):
    def __init__(self) -> None:
        super().__init__()
        self.secured = False

    def lifecycle(self) -> int:
        return SECURED if self.secured else NOT_PROVISIONED

    def lock(self) -> None:
        self.secured = True
