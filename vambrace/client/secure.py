"""A Secure VM, as its user sees it: it runs at once, by the platform owner's signature, and answers for itself."""

from __future__ import annotations

import contextlib

from vambrace.attest.verify import VerifiedRealm
from vambrace.classes import SECURE
from vambrace.client.attested import Attested
from vambrace.client.progress import Progress, silent
from vambrace.errors import VambraceError, VerificationError


class SecureVm(Attested):
    """``create``, ``verify``, ``start``. It does not end when its applications have: ``destroy`` ends it."""

    kinds = (SECURE.name,)

    def verify(self, progress: Progress = silent) -> VerifiedRealm:
        """Wait for the launch token and verify it. Where it is not to be trusted, the VM, which runs already, is
        destroyed and the ``VerificationError`` raised."""
        self._loaded(progress)
        try:
            return self._verify(self.host.token(self.uuid))
        except VerificationError:
            with contextlib.suppress(VambraceError):
                self.destroy()
            raise
