"""TrustZone with software keys and a life cycle, and that is the same platform again after a restart."""

from __future__ import annotations

from vambrace.attest.policy import DEBUG, DECOMMISSIONED, NOT_PROVISIONED, SECURED
from vambrace.attest.suites import generate
from vambrace.errors import TrustZoneError
from vambrace.suite import NIST, Suite
from vambrace.trustzone.insecure import InsecurePlatform


class FakeTrustZone(InsecurePlatform):
    def __init__(self, suite: Suite = NIST) -> None:
        super().__init__(suite)
        self.state = NOT_PROVISIONED

    def lifecycle(self) -> int:
        return self.state

    def platform_key(self) -> bytes:
        if self.state == DECOMMISSIONED:
            raise TrustZoneError("TrustZone refuses: security violation")
        return super().platform_key()

    def advance(self, lifecycle: int) -> None:
        """As firmware/optee/fuse.c has it."""
        ways = {SECURED: [NOT_PROVISIONED], DEBUG: [NOT_PROVISIONED, SECURED]}
        if lifecycle not in (self.state, DECOMMISSIONED) and self.state not in ways.get(lifecycle, []):
            raise TrustZoneError("TrustZone refuses: no way leads to that state")
        if lifecycle == DEBUG != self.state:
            self._platform = generate(self._suite)
        self.state = lifecycle
