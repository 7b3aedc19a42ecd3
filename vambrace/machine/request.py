"""What a VMM is given for one domain."""

from __future__ import annotations

from vambrace.machine.descriptors import Descriptors
from vambrace.pager import Place
from vambrace.record import Record


class LoadRequest(Record):
    """Files and identity of one domain. ``instance`` has 16 bytes; TrustZone's ``share`` of the page key has 32, and is
    there where something is encrypted. Both are for this run only.

    What ``load`` does not take of ``descriptors`` stays the caller's.
    """

    descriptors: Descriptors
    instance: bytes
    share: bytes | None
    cid: int
    cards: tuple[tuple[bytes, int], ...] = ()  # of each network: the guest's address there, and its largest packet
    cpus: tuple[int, ...] = ()  # vCPU i runs on the i-th of them, in turn; none: anywhere
    place: Place | None = None  # chooses the page frames of guest memory

    def __repr__(self) -> str:
        return "LoadRequest(…)"  # never the share
