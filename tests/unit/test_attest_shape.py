"""The form of a token: what is missing, malformed or too much is refused, whoever signed it."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from attest_factory import Platform, claim, collection, verify, without

from vambrace.attest.token import decode_evidence
from vambrace.errors import MalformedEvidence


@pytest.fixture(scope="module")
def platform() -> Platform:
    return Platform()


@pytest.mark.parametrize("key", [265, 10, 2396, 256, 2401, 2395, 2402, 2399])
def test_missing_platform_claim(platform: Platform, key: int) -> None:
    with pytest.raises(MalformedEvidence):
        verify(platform.token(platform=without(key)), platform)


@pytest.mark.parametrize(
    "key", [265, 10, 44235, 44238, 44239, 44236, 44237, 44240, -70001, -70002, -70003, -70004, -70005, -70006]
)
def test_missing_realm_claim(platform: Platform, key: int) -> None:
    with pytest.raises(MalformedEvidence):
        verify(platform.token(realm=without(key)), platform)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (265, "http://arm.com/CCA-SSD/1.0.0"),
        (10, bytes(31)),
        (2395, True),
        (2395, -1),
        (2395, 1 << 32),
        (256, bytes(33)),
        (2402, "md5"),
        (2399, []),
        (2399, [{}]),
        (2399, [{1: "BL31\x1b[2J", 2: bytes(32), 5: bytes(32)}]),
        (2399, [{1: "BL31", 2: bytes(31), 5: bytes(32)}]),
        (2399, [{1: "BL31", 2: bytes(32), 5: bytes(1)}]),
        (2399, [{1: "BL31", 2: bytes(32), 5: bytes(32), 7: 0}]),
        (2399, [{1: "BL31", 2: bytes(32), 5: bytes(32)}] * 65),
        (9999, 0),
        ("9999", 0),
        (2401, 0.5),
    ],
)
def test_malformed_platform_claim(platform: Platform, key: int, value: Any) -> None:
    with pytest.raises(MalformedEvidence):
        verify(platform.token(platform=claim(key, value)), platform)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (265, "tag:vambrace.dev,2026:platform#1"),
        (10, bytes(32)),
        (44235, bytes(63)),
        (44238, bytes(64)),
        (44239, [bytes(32)] * 3),
        (44239, [bytes(32)] * 3 + [bytes(31)]),
        (44237, b"\xa0"),
        (44240, "sha-512"),
        (-70001, bytes(15)),
        (-70002, "x" * 129),
        (-70003, 0),
        (-70004, 0),
        (-70004, None),
        (-70006, 0),
    ],
)
def test_malformed_realm_claim(platform: Platform, key: int, value: Any) -> None:
    with pytest.raises(MalformedEvidence):
        verify(platform.token(realm=claim(key, value)), platform)


def test_malformed_collections(platform: Platform) -> None:
    halves = platform.halves()
    good = collection(halves)
    for bad in (
        b"",
        good[:-1],
        good + b"\0",
        good + good,
        collection(halves, tag=908),
        good[3:],  # no tag at all
        collection({44234: halves[44234]}),
        collection({**halves, 1: b""}),
        collection({**halves, 44241: 7}),  # type: ignore[dict-item]
        bytes(70000),
    ):
        with pytest.raises(MalformedEvidence):
            decode_evidence(bad)


@pytest.mark.parametrize("half", [44234, 44241])
def test_malformed_headers(platform: Platform, half: int) -> None:
    halves = platform.halves()
    protected, unprotected, payload, signature = cbor2.loads(halves[half]).value

    def refused(*message: Any, tag: int = 18) -> None:
        encoded = cbor2.dumps(cbor2.CBORTag(tag, list(message)), canonical=True)
        with pytest.raises(MalformedEvidence):
            decode_evidence(collection({**halves, half: encoded}))

    refused(protected, unprotected, payload, signature, tag=17)
    refused(protected, unprotected, payload)
    refused(protected, unprotected, None, signature)
    refused(protected, {**unprotected, 4: b"kid"}, payload, signature)
    refused(protected, unprotected, payload, signature[:-1])
    refused(b"", unprotected, payload, signature)
    refused(cbor2.dumps({1: -35}), unprotected, payload, signature)
    refused(cbor2.dumps({1: -7, 2: [1]}), unprotected, payload, signature)
    if half == 44241:
        refused(protected, {33: b"certificate"}, payload, signature)
