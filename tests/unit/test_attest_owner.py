"""The owner's identity and messages."""

from __future__ import annotations

import hashlib
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vambrace.attest import cbor
from vambrace.attest.cose import sign1
from vambrace.attest.owner import (
    Bounds,
    BoundsOrder,
    OwnerIdentity,
    PercentOrder,
    verify_bounds,
    verify_percent,
    verify_verdict,
)
from vambrace.certificate import certificate_der, certificate_pem, owner_public_key
from vambrace.errors import ConfigError, MessageRefused, UsageError

INSTANCE = bytes(range(16))
DIGEST = hashlib.sha256(b"a token").digest()


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> OwnerIdentity:
    return OwnerIdentity.create(tmp_path_factory.mktemp("owner"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> OwnerIdentity:
    return OwnerIdentity.create(tmp_path_factory.mktemp("stranger"))


def verdict(message: bytes, identity: OwnerIdentity, /, **changes: Any) -> bool:
    names = {"owner": identity.certificate_pem, "instance": INSTANCE, "token_digest": DIGEST}
    return verify_verdict(message, **{**names, **changes})


def percent(message: bytes, owner: OwnerIdentity, last_counter: int = 6) -> PercentOrder:
    return verify_percent(message, owner=owner.certificate_pem, instance=INSTANCE, last_counter=last_counter)


def auto(message: bytes, owner: OwnerIdentity, last_counter: int = 6) -> BoundsOrder:
    return verify_bounds(message, owner=owner.certificate_pem, instance=INSTANCE, last_counter=last_counter)


def test_identity_is_kept_privately(owner: OwnerIdentity) -> None:
    loaded = OwnerIdentity.load(owner.key_path.parent)
    assert loaded.certificate == owner.certificate
    assert loaded.spki == owner.spki == owner_public_key(owner.certificate_pem)
    assert stat.S_IMODE(owner.key_path.stat().st_mode) == 0o600
    assert certificate_pem(certificate_der(owner.certificate_pem)) == owner.certificate_pem
    assert owner.personalization() == hashlib.sha512(b"vambrace-rpv-1" + owner.spki).digest()


def test_identity_refusals(owner: OwnerIdentity, stranger: OwnerIdentity, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no owner's identity"):
        OwnerIdentity.load(tmp_path)
    with pytest.raises(ConfigError, match="already"):
        OwnerIdentity.create(owner.key_path.parent)
    (tmp_path / "key.pem").write_bytes(owner.key_path.read_bytes())
    (tmp_path / "certificate.pem").write_bytes(stranger.certificate_path.read_bytes())
    with pytest.raises(ConfigError, match="belong together"):
        OwnerIdentity.load(tmp_path)
    (tmp_path / "key.pem").write_text("damaged")
    with pytest.raises(ConfigError, match="damaged"):
        OwnerIdentity.load(tmp_path)


@pytest.mark.parametrize("client", ["owner", "stranger"])
def test_tls_13_accepts_the_owner_only(owner: OwnerIdentity, stranger: OwnerIdentity, client: str) -> None:
    """Mutual TLS as the agent does it: strict checks, the owner's certificate as the only trust anchor."""
    identity = {"owner": owner, "stranger": stranger}[client]
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_context.minimum_version = ssl.TLSVersion.TLSv1_3
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.verify_flags |= ssl.VERIFY_X509_STRICT
    server_context.load_cert_chain(stranger.certificate_path, stranger.key_path)
    server_context.load_verify_locations(owner.certificate_path)
    client_context = ssl.create_default_context(cafile=str(stranger.certificate_path))
    client_context.check_hostname = False
    client_context.load_cert_chain(identity.certificate_path, identity.key_path)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    user = client_context.wrap_bio(to_client, to_server)

    def step(action: Callable[[], object]) -> bool:
        try:
            action()
        except ssl.SSLWantReadError:
            return False
        return True

    def handshake() -> None:
        for _ in range(5):
            if step(user.do_handshake) & step(server.do_handshake):
                return

    if client == "owner":
        handshake()
        assert server.version() == "TLSv1.3"
        assert server.getpeercert(binary_form=True) == certificate_der(owner.certificate_pem)
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake()


# --- verdicts ---------------------------------------------------------------------------------------------


def test_verdict(owner: OwnerIdentity) -> None:
    assert verdict(owner.sign_verdict(INSTANCE, DIGEST, yes=True), owner) is True
    assert verdict(owner.sign_verdict(INSTANCE, DIGEST, yes=False), owner) is False


def test_verdict_refusals(owner: OwnerIdentity, stranger: OwnerIdentity) -> None:
    good = owner.sign_verdict(INSTANCE, DIGEST, yes=True)
    with pytest.raises(MessageRefused, match="not signed by the owner"):
        verdict(stranger.sign_verdict(INSTANCE, DIGEST, yes=True), owner)
    with pytest.raises(MessageRefused, match="another instance"):
        verdict(good, owner, instance=bytes(16))
    with pytest.raises(MessageRefused, match="another token"):
        verdict(good, owner, token_digest=bytes(32))
    with pytest.raises(MessageRefused, match="not a verdict"):
        verdict(owner.sign_percent(INSTANCE, 1, 80, 7), owner)
    with pytest.raises(MessageRefused, match="no owner"):
        verdict(good, owner, owner="garbage")


def test_percent(owner: OwnerIdentity) -> None:
    assert percent(owner.sign_percent(INSTANCE, 1, 80, 7), owner) == PercentOrder(1, 80, 7)


def test_percent_refusals(owner: OwnerIdentity, stranger: OwnerIdentity) -> None:
    good = owner.sign_percent(INSTANCE, 1, 80, 7)
    for last in (7, 8):
        with pytest.raises(MessageRefused, match="old"):
            percent(good, owner, last_counter=last)
    with pytest.raises(MessageRefused, match="not signed by the owner"):
        percent(stranger.sign_percent(INSTANCE, 1, 80, 7), owner)
    with pytest.raises(MessageRefused, match="another instance"):
        percent(owner.sign_percent(bytes(16), 1, 80, 7), owner)
    with pytest.raises(MessageRefused, match="not a percent"):
        percent(owner.sign_verdict(INSTANCE, DIGEST, yes=True), owner)


BODY: dict[str, Any] = {"type": "percent", "instance": INSTANCE, "zone": 1, "percent": 80, "counter": 7}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({**BODY, "percent": 101}, "not a percentage"),
        ({**BODY, "percent": -1}, "whole number"),
        ({**BODY, "percent": True}, "whole number"),
        ({**BODY, "zone": "1"}, "whole number"),
        ({**BODY, "counter": 1 << 63}, "out of range"),
        ({**BODY, "more": 1}, "fields"),
        ({key: value for key, value in BODY.items() if key != "zone"}, "fields"),
        ({**BODY, "instance": INSTANCE.hex()}, "another instance"),
        ({**BODY, "type": ["percent"]}, "not a percent"),
        ([], "not a percent"),
    ],
)
def test_signed_nonsense_is_refused(owner: OwnerIdentity, body: Any, message: str) -> None:
    with pytest.raises(MessageRefused, match=message):
        percent(sign1(owner.key, cbor.encode(body)), owner)


# --- bounds, within which the host chooses --------------------------------------------------------------------

BOUNDS = Bounds(30, 90, 50)


def test_auto(owner: OwnerIdentity) -> None:
    for bounds in (BOUNDS, Bounds(1, 100, 1), Bounds(50, 50, 999), None):
        assert auto(owner.sign_bounds(INSTANCE, 1, bounds, 7), owner) == BoundsOrder(1, bounds, 7)


def test_auto_refusals(owner: OwnerIdentity, stranger: OwnerIdentity) -> None:
    for bounds in (BOUNDS, None):
        good = owner.sign_bounds(INSTANCE, 1, bounds, 7)
        for last in (7, 8):
            with pytest.raises(MessageRefused, match="old"):
                auto(good, owner, last_counter=last)
        with pytest.raises(MessageRefused, match="not signed by the owner"):
            auto(stranger.sign_bounds(INSTANCE, 1, bounds, 7), owner)
        with pytest.raises(MessageRefused, match="another instance"):
            auto(owner.sign_bounds(bytes(16), 1, bounds, 7), owner)
        # Neither message serves as the other.
        with pytest.raises(MessageRefused, match="not a percent"):
            percent(good, owner)
    with pytest.raises(MessageRefused, match="not a bounds"):
        auto(owner.sign_percent(INSTANCE, 1, 80, 7), owner)


LIMITS: dict[str, Any] = {"lowest": 30, "highest": 90, "slowdown": 50}
AUTO: dict[str, Any] = {"type": "bounds", "instance": INSTANCE, "zone": 1, "counter": 7, "on": True, **LIMITS}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({**AUTO, "lowest": 91}, "between 91 and 90"),
        ({**AUTO, "lowest": 0}, "between 0 and 90"),
        ({**AUTO, "lowest": -1}, "between -1 and 90"),
        ({**AUTO, "highest": 101}, "between 30 and 101"),
        ({**AUTO, "lowest": True}, "whole numbers"),
        ({**AUTO, "highest": "90"}, "whole numbers"),
        ({**AUTO, "slowdown": None}, "whole numbers"),
        ({**AUTO, "slowdown": [50]}, "whole numbers"),
        ({**AUTO, "slowdown": 0}, "0 thousandths"),
        ({**AUTO, "slowdown": 1000}, "1000 thousandths"),
        ({**AUTO, "slowdown": -5}, "-5 thousandths"),
        ({**AUTO, "on": 1}, "neither on nor off"),
        ({**AUTO, "on": None}, "neither on nor off"),
        ({**AUTO, "on": False}, "fields"),
        ({**AUTO, "zone": -1}, "whole number"),
        ({**AUTO, "zone": True}, "whole number"),
        ({**AUTO, "counter": "7"}, "whole number"),
        ({**AUTO, "counter": 1 << 63}, "out of range"),
        ({**AUTO, "more": 1}, "fields"),
        *(({key: value for key, value in AUTO.items() if key != left_out}, "fields") for left_out in ("on", *LIMITS)),
        ({**AUTO, "instance": INSTANCE.hex()}, "another instance"),
        ({**AUTO, "type": "percent"}, "not a bounds"),
        ("bounds", "not a bounds"),
    ],
)
def test_signed_nonsense_about_bounds_is_refused(owner: OwnerIdentity, body: Any, message: str) -> None:
    with pytest.raises(MessageRefused, match=message):
        auto(sign1(owner.key, cbor.encode(body)), owner)


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body[:-1],
        lambda body: body + b"\0",
        lambda body: body.replace(b"\x18\x5a", b"\x19\x00\x5a"),  # 90, longer than it needs to be
        lambda body: body.replace(b"\x18\x5a", b"\xf9\x55\xa0"),  # 90.0
        lambda body: bytes([0xBF]) + body[1:] + b"\xff",  # a map of indefinite length
    ],
)
def test_signed_bounds_that_are_not_deterministic_cbor(owner: OwnerIdentity, damage: Callable[[bytes], bytes]) -> None:
    body = cbor.encode(AUTO)
    assert damage(body) != body
    with pytest.raises(MessageRefused, match="cannot be read"):
        auto(sign1(owner.key, damage(body)), owner)


def test_no_bounds_that_are_none(owner: OwnerIdentity) -> None:
    wrong: tuple[Any, ...] = ((0, 9, 5), (9, 8, 5), (1, 101, 5), (1, 9, 0), (1, 9, 1000), (1.0, 9, 5), (True, 9, 5))
    for numbers in wrong:
        with pytest.raises(UsageError):
            Bounds(*numbers)
    for zone, counter in ((-1, 1), (1, -1), (1, 1 << 63)):
        with pytest.raises(UsageError):
            owner.sign_bounds(INSTANCE, zone, BOUNDS, counter)


def test_every_bit_of_bounds_counts(owner: OwnerIdentity) -> None:
    good = owner.sign_bounds(INSTANCE, 1, BOUNDS, 7)
    for position in range(len(good) * 8):
        changed = bytearray(good)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(MessageRefused):
            auto(bytes(changed), owner)


def test_every_bit_of_a_message_counts(owner: OwnerIdentity) -> None:
    good = owner.sign_percent(INSTANCE, 1, 80, 7)
    for position in range(len(good) * 8):
        changed = bytearray(good)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(MessageRefused):
            percent(bytes(changed), owner)
    for damaged in (b"", good[:-1], good + b"\0", bytes(5000)):
        with pytest.raises(MessageRefused):
            percent(damaged, owner)


def test_nonsense_is_not_signed(owner: OwnerIdentity) -> None:
    for arguments in ((INSTANCE, 1, 101, 1), (INSTANCE, -1, 1, 1), (INSTANCE, 1, 1, -1), (b"", 1, 1, 1)):
        with pytest.raises(UsageError):
            owner.sign_percent(*arguments)
    with pytest.raises(UsageError):
        owner.sign_verdict(INSTANCE, b"", yes=True)
