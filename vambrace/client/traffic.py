"""What an agent says of the messages with other Realms, checked: it comes from a Realm, and will be shown."""

from __future__ import annotations

from typing import TypedDict

from vambrace.client.channel import OTHER_VERSION
from vambrace.client.said import plain
from vambrace.config import Endpoint
from vambrace.counts import is_count
from vambrace.errors import DomainError

ROWS_LIMIT = 1024


class Traffic(TypedDict):
    """Of one endpoint with one other Realm. Bytes are this Realm's."""

    endpoint: str
    role: str  # offer or connect
    peer: str | None  # the other one's measured name; None: with Realms that have ended, and attempts that led to none
    open: int  # streams at this moment
    connections: int
    refused: int
    sent: int
    received: int


_COUNTS = ("open", "connections", "refused", "sent", "received")


def check(endpoints: tuple[Endpoint, ...], items: object) -> list[Traffic]:
    """``items`` as the traffic of these endpoints. Raises ``DomainError``."""
    roles = {endpoint.name: endpoint.role for endpoint in endpoints}
    if not isinstance(items, list) or len(items) > ROWS_LIMIT:
        raise _wrong()
    found: list[Traffic] = []
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("endpoint"), str) or item["endpoint"] not in roles:
            raise _wrong()
        counts = [item.get(key) for key in _COUNTS]
        if not all(map(is_count, counts)):
            raise _wrong()
        name, peer = item["endpoint"], item.get("peer")
        found.append(
            Traffic(
                endpoint=name,
                role=roles[name],
                peer=None if peer is None else plain(peer),
                open=item["open"],
                connections=item["connections"],
                refused=item["refused"],
                sent=item["sent"],
                received=item["received"],
            )
        )
    return found


def _wrong() -> DomainError:
    return DomainError("the Realm's counts of messages are not understood", hint=OTHER_VERSION)
