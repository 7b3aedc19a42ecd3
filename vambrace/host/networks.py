"""The networks of this host, and their cards in the account."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from vambrace.errors import CapacityError
from vambrace.partition import cards
from vambrace.partition.cards import Network
from vambrace.partition.ledger import Kind

log = logging.getLogger(__name__)


class Networks:
    """Those that domains may name."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._by_name = {network.name: network for network in networks}

    @property
    def kinds(self) -> list[Kind]:
        """The cards of each: which of them a domain has makes no difference, only that nobody else has it."""
        return [
            Kind.single(_kind(network), (f"{network.name}/{number}" for number in range(network.cards)))
            for network in self._by_name.values()
        ]

    def open(self) -> None:
        """Say what an earlier daemon's VMMs have left, as long as they have not ended."""
        if left := cards.leftovers():
            log.warning("network cards of an earlier run are still there: %s", ", ".join(left))

    def named(self, label: str, names: Sequence[str]) -> tuple[Network, ...]:
        """A domain's networks. Raises ``CapacityError`` (there is no such), ``PartitionError`` (it has no bridge)."""
        for name in names:
            if name not in self._by_name:
                known = ", ".join(self._by_name) or "none"
                raise CapacityError(f"{label} needs the network {name}", hint=f"this host's networks: {known}")
            cards.check(self._by_name[name])
        return tuple(self._by_name[name] for name in names)


def needs(networks: Iterable[Network]) -> dict[str, int]:
    """What the account must give for a card at each."""
    return {_kind(network): 1 for network in networks}


def _kind(network: Network) -> str:
    return f"cards of {network.name}"
