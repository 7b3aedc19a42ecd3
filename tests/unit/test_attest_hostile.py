"""Hostile bytes: every single bit of a token counts, and nothing but a VerificationError comes out."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from attest_factory import COMPONENTS, NOW, Platform, collection, dumps, published, verify
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from vambrace.attest import cbor, cose, references
from vambrace.attest.show import describe
from vambrace.attest.token import decode_evidence
from vambrace.errors import MalformedEvidence, VerificationError

# A flipped bit makes a serial number negative, which the X.509 library only warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")

PLATFORM = Platform()
TOKEN = PLATFORM.token()
CORIM = published(PLATFORM)


def test_every_bit_of_a_token_counts() -> None:
    verify(TOKEN, PLATFORM)
    for position in range(len(TOKEN) * 8):
        changed = bytearray(TOKEN)
        changed[position // 8] ^= 1 << position % 8
        try:
            verify(bytes(changed), PLATFORM)
        except VerificationError:
            continue
        pytest.fail(f"bit {position % 8} of byte {position // 8} does not count")


@pytest.mark.parametrize("place", ["loose", "protected", "another profile"])
def test_nothing_is_kept_of_what_strangers_send(place: str) -> None:
    """What costs a token's bytes once must not cost a hundred times as many for as long as the verifier runs."""
    halves = Platform().halves()
    header, loose, payload, signature = cbor2.loads(halves[44234]).value

    def send(number: int) -> None:
        junk = {"junk": [{0: 0}] * 1000, "number": number}
        parts = {
            "loose": [header, {**loose, **junk}, payload, signature],
            "protected": [dumps({1: -7, **junk}), loose, payload, signature],
            "another profile": [header, {**loose, **junk}, dumps({265: f"profile {number}"}), signature],
        }
        with pytest.raises(MalformedEvidence):
            decode_evidence(collection({**halves, 44234: dumps(cbor2.CBORTag(18, parts[place]))}))

    send(0)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1, 30):
            send(number)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1 << 20


def test_unused_bits_of_a_certificate_signature() -> None:
    """A case of the one above that depends on the signature: the bit string claims fewer bits, all zero."""
    while True:
        leaf = PLATFORM.authority.certify(PLATFORM.pak_cose, now=NOW)
        if leaf.signature[-1] & 1 == 0:
            break
    good = leaf.public_bytes(Encoding.DER)
    marker = len(good) - len(leaf.signature) - 1
    assert good[marker] == 0
    verify(replace(PLATFORM, chain=[good]).token(), PLATFORM)
    with pytest.raises(MalformedEvidence):
        verify(replace(PLATFORM, chain=[good[:marker] + b"\1" + good[marker + 1 :]]).token(), PLATFORM)


def test_every_bit_of_the_reference_values_counts() -> None:
    assert references.load(CORIM, PLATFORM.roots, now=NOW).components == COMPONENTS
    for position in range(len(CORIM) * 8):
        changed = bytearray(CORIM)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(VerificationError):
            references.load(bytes(changed), PLATFORM.roots, now=NOW)


def test_every_shortened_token_is_refused() -> None:
    for length in range(len(TOKEN)):
        with pytest.raises(MalformedEvidence):
            decode_evidence(TOKEN[:length])


def only_verification_errors(token: bytes) -> None:
    for read in (lambda: verify(token, PLATFORM), lambda: describe(token), lambda: cose.decode_key(token)):
        with contextlib.suppress(VerificationError):
            read()
    with pytest.raises(VerificationError):
        references.load(token, PLATFORM.roots, now=NOW)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    only_verification_errors(data)


# Any CBOR, beyond what our own encoder can write: floats, tags, byte strings as keys.
SCALARS: Any = (
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats() | st.binary(max_size=40)
) | st.text(max_size=20)
KEYS: Any = st.integers(-100000, 100000) | st.sampled_from([1, 2, 5, 6, 10, 33, 256, 265, 2399]) | st.text()
VALUES: Any = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(KEYS, inner, max_size=5)
        | st.builds(cbor2.CBORTag, st.sampled_from([0, 1, 2, 18, 28, 29, 32, 35, 55799, 907]), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_random_cbor(value: Any) -> None:
    data = cbor2.dumps(value, canonical=True)
    only_verification_errors(data)
    only_verification_errors(cbor2.dumps(cbor2.CBORTag(907, value), canonical=True))
    only_verification_errors(cbor2.dumps(cbor2.CBORTag(907, {44234: [263, data], 44241: [263, data]}), canonical=True))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_claims_under_good_signatures(data: st.DataObject) -> None:
    """Even a platform with certified keys can only make the verifier raise its own errors."""

    def disturb(claims: dict[int, Any]) -> None:
        key = data.draw(st.sampled_from(sorted(claims)))
        claims[key] = data.draw(VALUES)

    half = data.draw(st.sampled_from(["platform", "realm"]))
    only_verification_errors(PLATFORM.token(**{half: disturb}))  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_cut_and_spliced_tokens(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(TOKEN)))
    end = data.draw(st.integers(start, len(TOKEN)))
    token = TOKEN[:start] + data.draw(st.binary(max_size=30)) + TOKEN[end:]
    if token != TOKEN:
        with pytest.raises(VerificationError):
            verify(token, PLATFORM)


# --- CBOR itself ------------------------------------------------------------------------------------------

OURS: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.integers(-(2**64), 2**64 - 1) | st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(OURS)
def test_cbor_round_trip_agrees_with_another_library(value: Any) -> None:
    encoded = cbor.encode(value)
    assert cbor2.loads(encoded) == value
    assert cbor.decode(encoded, limit=1 << 20) == value


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
def test_one_encoding_for_each_value(data: bytes) -> None:
    try:
        value = cbor.decode(data, limit=100)
    except MalformedEvidence:
        return
    assert cbor.encode(value) == data


@pytest.mark.parametrize(
    ("value", "encoding"),
    [  # RFC 8949, appendix A
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (1000000000000, "1b000000e8d4a51000"),
        (18446744073709551615, "1bffffffffffffffff"),
        (-18446744073709551616, "3bffffffffffffffff"),
        (-1000, "3903e7"),
        (True, "f5"),
        (None, "f6"),
        (b"\x01\x02\x03\x04", "4401020304"),
        ("\u6c34", "63e6b0b4"),
        ([1, [2, 3], [4, 5]], "8301820203820405"),
        ({1: 2, 3: 4}, "a201020304"),
        (cbor.Tag(1, 1363896240), "c11a514b67b0"),
        # RFC 8949, 4.2.1: the order is that of the encoded keys, byte by byte
        ({-1: 0, 256: 0, 10: 0, "aa": 0}, "a40a0019010000200062616100"),
    ],
)
def test_cbor_vectors(value: Any, encoding: str) -> None:
    assert cbor.encode(value).hex() == encoding
    assert cbor.decode(bytes.fromhex(encoding), limit=100) == value


@pytest.mark.parametrize(
    "encoding",
    [
        "",
        "1800",  # not the shortest form
        "190018",
        "1a0000ffff",
        "1b00000000ffffffff",
        "5f4101ff",  # indefinite lengths
        "9f01ff",
        "bf0101ff",
        "f97e00",  # floats
        "fb3ff8000000000000",
        "f7",  # undefined
        "f0",
        "f814",
        "1c",  # reserved
        "a201020103",  # a key twice
        "a203040102",  # out of order
        "a1410102",  # a byte string as key
        "a1f402",
        "a1f502",
        "a1c10102",
        "0000",  # two values
        "62c328",  # not UTF-8
        "63eda080",  # a surrogate
        "9bffffffffffffffff",  # more items than bytes
        "bb7fffffffffffffff",
        "5bffffffffffffffff",
        "81" * 20 + "00",  # too deep
    ],
)
def test_cbor_refusals(encoding: str) -> None:
    with pytest.raises(MalformedEvidence):
        cbor.decode(bytes.fromhex(encoding), limit=100)


def test_cbor_bounds() -> None:
    with pytest.raises(MalformedEvidence):
        cbor.decode(bytes(101), limit=100)
    with pytest.raises(MalformedEvidence, match="too many"):
        cbor.decode(cbor.encode([0] * 5000), limit=10000)


def test_keys_off_the_curve_are_refused() -> None:
    good = cbor.decode(PLATFORM.pak_cose, limit=200)
    wrong = [{**good, -2: bytes(32)}, {**good, -1: True}, {**good, -3: bytes(31)}, {**good, 2: b""}, {}, 1]
    for key in wrong:
        with pytest.raises(MalformedEvidence):
            cose.decode_key(cbor.encode(key))
    assert cose.encode_key(cose.decode_key(PLATFORM.pak_cose)) == PLATFORM.pak_cose


def test_duplicate_halves_are_refused() -> None:
    halves = PLATFORM.halves()
    one = b"\x19\xac\xca" + cbor.encode([263, halves[44234]])
    with pytest.raises(MalformedEvidence):
        decode_evidence(b"\xd9\x03\x8b\xa2" + one + one)
    assert decode_evidence(collection(halves)).realm.instance
