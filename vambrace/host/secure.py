"""A Secure VM: the platform owner's signature on what is measured is the consent that a Realm has from its owner."""

from __future__ import annotations

from vambrace.host.attested import Attested


class SecureVm(Attested):
    """Starts once it is measured as what was signed. What its applications come to does not end it."""

    async def _stages(self) -> None:
        await self._load_measured()
        await self._start()
        await self._serve()
