"""A host that gives its user another Realm of the same image, or that one's token, is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from user import Pair

from vambrace.attest.owner import OwnerIdentity
from vambrace.client.channel import Channel
from vambrace.client.host import Host
from vambrace.client.realm import Realm
from vambrace.errors import AnotherRealm, ChallengeMismatch


class Misleading(Host):
    """Connects whoever asks for one Realm to another."""

    def __init__(self, host: Host, server: Any, instead: str) -> None:
        access = server.access()
        super().__init__(host.url, access.certificate, access.key, access.ca)
        self.instead = instead

    def channel_url(self, uuid: str) -> str:
        return super().channel_url(self.instead)


class Relayed(Channel):
    """Its agent's token is replaced, on the way, by what ``other`` answers to the same question."""

    other: Channel

    def request(self, operation: str, **arguments: Any) -> tuple[dict[str, Any], bytes]:
        return (self.other if operation == "attest" else super()).request(operation, **arguments)


def channel(kind: type[Channel], pair: Pair, realm: Realm) -> Channel:
    """A channel of the owner's to ``realm``, which must prove to be it."""
    instance, expected, owner = bytes.fromhex(realm.state.instance), realm.expected, pair.user.owner

    def verify(token: bytes, nonce: bytes, spki: bytes) -> Any:
        return realm.trust.channel(token, nonce, spki, instance, expected)

    return kind(realm.host, realm.uuid, owner.certificate_path, owner.key_path, verify)


def test_another_realm(pair: Pair) -> None:
    """Connected to the second Realm, the user who asked for the first says so; so for a token from there."""
    first, second = pair.realms
    misleading = Misleading(pair.user.host, pair.server, second.uuid)
    misled = Realm(misleading, pair.user.owner, pair.user.trust, pair.user.context, first.uuid, first.config)
    with pytest.raises(AnotherRealm) as found:
        misled.attest()
    assert found.value.instance.hex() == second.state.instance

    with channel(Channel, pair, second) as other:
        relayed = type("Relayed", (Relayed,), {"other": other})
        with pytest.raises(AnotherRealm) as found:
            channel(relayed, pair, first)
        assert found.value.instance.hex() == second.state.instance
    # Without a relay all is well.
    assert first.attest().instance.hex() == first.state.instance


def test_man_in_the_middle(pair: Pair, tmp_path: Path) -> None:
    """The right Realm's fresh token does not vouch for the key of somebody who relays it, nor for another nonce."""
    realm = pair.realms[0]
    middle = OwnerIdentity.create(tmp_path / "middle")
    instance, expected = bytes.fromhex(realm.state.instance), realm.expected
    seen: list[tuple[bytes, bytes, bytes]] = []

    def verify(token: bytes, nonce: bytes, spki: bytes) -> Any:
        seen.append((token, nonce, spki))
        return realm.trust.channel(token, nonce, spki, instance, expected)

    owner = pair.user.owner
    with Channel(realm.host, realm.uuid, owner.certificate_path, owner.key_path, verify):
        token, nonce, spki = seen[0]
    with pytest.raises(ChallengeMismatch):
        realm.trust.channel(token, nonce, middle.spki, instance, expected)
    with pytest.raises(ChallengeMismatch):
        realm.trust.channel(token, bytes(32), spki, instance, expected)
