"""Each way of being wrong has an error of its own: the list of ways, from the same good platform."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from attest_factory import COMPONENTS, INSTANCE, MEASUREMENT, NONCE, NOW, Platform, expected, verify

from vambrace.attest.challenge import channel_challenge
from vambrace.attest.policy import CACHE_DEMANDS, Policy
from vambrace.attest.verify import verify_channel, verify_launch
from vambrace.errors import (
    AnotherRealm,
    CacheShared,
    CertificateExpired,
    ChallengeMismatch,
    ComponentChanged,
    InsecurePlatform,
    MeasurementMismatch,
    OwnerMismatch,
    ReplayedToken,
    SignatureInvalid,
    UnknownRoot,
    VerificationError,
)

GOOD = Platform()
SPKI = b"the TLS key of this session"
OTHER = bytes(16)


def launch(token: bytes, **changes: Any) -> None:
    verify_launch(token, **{"nonce": NONCE, **expected(GOOD, **changes)})


def channel(token: bytes) -> None:
    verify_channel(token, nonce=NONCE, spki=SPKI, instance=INSTANCE, **expected(GOOD))


def relayed() -> bytes:
    """Of a second Realm with the same image, which was given our nonce and the TLS key that we see."""

    def claims(values: dict[int, Any]) -> None:
        values[10] = channel_challenge(NONCE, SPKI, OTHER)

    return GOOD.token(realm=claims, instance=OTHER)


def one_bit() -> bytes:
    """In the measurement that is signed. Every other bit of a token: ``test_every_bit_of_a_token_counts``."""
    token = bytearray(GOOD.token())
    token[token.index(MEASUREMENT)] ^= 1
    return bytes(token)


def component(index: int) -> Platform:
    changed = list(COMPONENTS)
    changed[index] = replace(changed[index], digest=bytes(32))
    return replace(GOOD, components=changed)


DIVIDED = Policy(cache_partitions=CACHE_DEMANDS["divided"])
OLD = GOOD.token(nonce=bytes(32))
WAYS: dict[str, tuple[type[VerificationError], Callable[[], None]]] = {
    "wrong nonce": (ChallengeMismatch, lambda: launch(GOOD.token(), nonce=bytes(32))),
    "replayed token": (ReplayedToken, lambda: launch(OLD, seen={hashlib.sha256(OLD).digest()})),
    "another Realm's token": (AnotherRealm, lambda: channel(relayed())),
    "one bit changed": (SignatureInvalid, lambda: launch(one_bit())),
    "unknown root": (UnknownRoot, lambda: launch(GOOD.token(), roots=Platform().roots)),
    "insecure platform": (InsecurePlatform, lambda: launch(replace(GOOD, lifecycle=0x1000).token())),
    "wrong measurement": (MeasurementMismatch, lambda: launch(GOOD.token(), measurement=bytes(32))),
    "changed component": (ComponentChanged, lambda: launch(component(0).token())),
    "expired certificate": (CertificateExpired, lambda: launch(GOOD.token(), now=NOW + timedelta(days=4000))),
    "another owner": (OwnerMismatch, lambda: launch(GOOD.token(), personalization=bytes(64))),
    "undivided cache": (CacheShared, lambda: launch(GOOD.token(), policy=DIVIDED)),
}


def test_without_any_of_them_it_verifies() -> None:
    launch(GOOD.token())
    launch(GOOD.token(), seen={hashlib.sha256(OLD).digest()})


@pytest.mark.parametrize("way", WAYS)
def test_each_way_has_its_own_error(way: str) -> None:
    error, attempt = WAYS[way]
    with pytest.raises(VerificationError) as caught:
        attempt()
    assert type(caught.value) is error
    assert error.exit_code == 4 and str(caught.value)


def test_no_two_ways_share_an_error() -> None:
    assert len({error for error, _ in WAYS.values()}) == len(WAYS)


@pytest.mark.parametrize("index", range(len(COMPONENTS)))
def test_a_changed_firmware_or_host_component_is_named(index: int) -> None:
    """BL33 is the stub that pins the host's kernel, initrd and device tree by their digests."""
    with pytest.raises(ComponentChanged) as caught:
        verify(component(index).token(), GOOD)
    assert caught.value.component == COMPONENTS[index].name
