"""The percentage is the owner's: the monitor takes nobody else's word, and no word twice."""

from __future__ import annotations

import base64

import pytest
from user import Pair

from vambrace.attest.owner import OwnerIdentity
from vambrace.client.realm import Realm
from vambrace.errors import DomainError

HOLDER = 2


def percents(realm: Realm) -> list[int]:
    return [int(zone["percent"]) for zone in realm.stats()]


def order(pair: Pair, realm: Realm, percent: int, *, signer: OwnerIdentity | None = None, zone: int = HOLDER) -> bytes:
    """An order for ``realm``, right in everything that is not given."""
    counter = pair.user.context.next_counter(realm.uuid)
    instance = bytes.fromhex(realm.state.instance)
    return (signer or pair.user.owner).sign_percent(instance, zone, percent, counter)


def send(realm: Realm, message: bytes) -> None:
    """Hand ``message`` to the Realm's agent, over the attested channel, as the owner's client does."""
    realm._ask("encrypt", message=base64.b64encode(message).decode())
    for zone in realm.config.zones:
        realm.follow_change(zone.name)


def test_orders(pair: Pair) -> None:
    """Forged, replayed, old, of another Realm, for no zone, or another message: refused, and nothing changes."""
    realm, other = pair.realms
    first = order(pair, realm, 60)
    overtaken = order(pair, realm, 10)
    send(realm, order(pair, realm, 70))
    assert percents(realm) == [70, 50, 70, 50]  # the system's follows
    forged = bytearray(order(pair, realm, 0))
    forged[-1] ^= 1
    token = realm.verified.token_sha256 if realm.verified else b""
    accepted = order(pair, realm, 60)
    send(realm, accepted)
    before = percents(realm)
    assert before == [60, 50, 60, 50]
    refused = {
        accepted: "old",
        first: "old",
        overtaken: "old",
        bytes(forged): "not signed by the owner",
        order(pair, realm, 0, signer=pair.user.stranger): "not signed by the owner",
        order(pair, other, 0): "another instance",
        order(pair, realm, 0, zone=4): "no zone 4",
        order(pair, realm, 0, zone=0): "follows",
        pair.user.owner.sign_verdict(bytes.fromhex(realm.state.instance), token, yes=True): "not a percent message",
        b"0": "cannot be read",
    }
    for message, why in refused.items():
        with pytest.raises(DomainError, match=why):
            send(realm, message)
        assert percents(realm) == before
    # What was refused for one Realm was good for the other, so that the instance made the difference.
    assert percents(other) == [50, 50, 50, 50]
    send(other, order(pair, other, 55))
    assert percents(other) == [55, 50, 55, 50]
