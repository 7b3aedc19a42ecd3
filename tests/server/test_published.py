"""Published ports and events of running Realms: what is the application's own, and what is proven."""

from __future__ import annotations

import pytest
from test_relay import Misleading
from user import Pair

from vambrace.attest.events import Event
from vambrace.client.realm import Realm
from vambrace.errors import AnotherRealm, DomainError, UsageError

OWN, ANOTHERS, UNPUBLISHED = 8002, 8001, 8003


def test_ports(pair: Pair) -> None:
    """An application is reached on its own port. On another's, where it listens too, it gets nothing."""
    for number, realm in enumerate(pair.realms):
        for _ in range(2):
            with realm.connect(OWN) as stream:
                stream.settimeout(120)
                stream.sendall(b"%d" % number)
                assert stream.recv(10) == b"%d" % number
        with pytest.raises(DomainError, match=f"does not serve on port {ANOTHERS}"):
            realm.connect(ANOTHERS)
        with pytest.raises(UsageError, match="not published"):
            realm.connect(UNPUBLISHED)


def test_a_host_that_leads_elsewhere(pair: Pair) -> None:
    first, second = pair.realms
    misleading = Misleading(pair.user.host, pair.server, second.uuid)
    misled = Realm(misleading, pair.user.owner, pair.user.trust, pair.user.context, first.uuid, first.config)
    try:
        with pytest.raises(AnotherRealm):
            misled.connect(OWN)
    finally:
        misled.close()


def test_events(pair: Pair) -> None:
    """What was started, and what an application said in the register that it may extend: proven by fresh tokens."""
    starts = [Event(0, "", f"start {name}") for name in ("intruder", "holder", "worker")]
    for realm in pair.realms:
        verified = realm.attest()
        found = realm.events(verified)
        assert [event for event in found if event.register == 0] == starts
        assert [event for event in found if event.register != 0] == [Event(1, "holder", "holding a secret")]
        assert [any(rem) for rem in verified.rems] == [True, True, False, False]
        assert realm.verified is not None and not any(map(any, realm.verified.rems)), "nothing, before the start"
