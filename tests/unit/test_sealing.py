"""Sealing: who gets which key, from the request to TrustZone to the bytes that an application keeps."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from config_factory import make_realm
from test_firmware import TA, compiled, output
from vambrace_agent import AgentError
from vambrace_agent import sealing as agent

from vambrace.config import DomainConfig
from vambrace.errors import ConfigError, TrustZoneError
from vambrace.release import MAX_VERSION, Sealing
from vambrace.suite import SM
from vambrace.trustzone import SealingClaims
from vambrace.trustzone.insecure import InsecurePlatform

OWNER = bytes(range(64))
MEASURED = SealingClaims(OWNER, rim=bytes(range(32)))
OWNED = SealingClaims(OWNER, name="patients", version=3)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    program = compiled(tmp_path_factory.mktemp("sealing"), "sealing", TA / "request.c")
    return lambda *requests: [line == "taken" for line in output([program], b"".join(requests))]


def test_what_the_monitor_asks_is_what_the_trusted_application_takes(taken: Any) -> None:
    sm3 = replace(MEASURED, suite=SM, debug=True)
    secure = replace(MEASURED, domain_class="secure")
    requests = [claims.encode() for claims in (MEASURED, OWNED, sm3, secure, replace(OWNED, name=32 * "a"))]
    assert {len(request) for request in requests} == {160}
    assert taken(*requests) == [True] * 5


def test_no_other_request_is_taken(taken: Any) -> None:
    """A byte that its policy does not look at must be zero: no two requests stand for the same."""
    looked_at = {MEASURED: {*range(11), *range(16, 112)}, OWNED: {*range(11), *range(16, 80), *range(112, 148)}}
    for good, used in looked_at.items():
        encoded = good.encode()
        unused = [place for place in range(160) if place not in used]
        changed = [encoded[:place] + b"\x07" + encoded[place + 1 :] for place in unused]
        assert not any(taken(*changed)), good
    bad = [
        struct.pack("<I", 2) + MEASURED.encode()[4:],  # version of the request
        MEASURED.encode()[:4] + struct.pack("<I", 2) + MEASURED.encode()[8:],  # flags
        MEASURED.encode()[:8] + b"\x00" + MEASURED.encode()[9:],  # policies
        MEASURED.encode()[:8] + b"\x03" + MEASURED.encode()[9:],
        MEASURED.encode()[:9] + b"\x00" + MEASURED.encode()[10:],  # hash
        MEASURED.encode()[:10] + b"\x00" + MEASURED.encode()[11:],  # class
        OWNED.encode()[:9] + b"\x01" + OWNED.encode()[10:],
        OWNED.encode()[:10] + b"\x02" + OWNED.encode()[11:],  # a Secure VM's owner is whoever it claims
        OWNED.encode()[:112] + bytes(32) + OWNED.encode()[144:],  # no name
    ]
    assert not any(taken(*bad))


@pytest.mark.parametrize(
    "wrong",
    [{"personalization": b""}, {"rim": b""}, {"name": 33 * "a"}, {"name": "é"}, {"name": "a\0b"}, {"version": -1},
     {"version": 1 << 32}, {"domain_class": "normal"}],
)  # fmt: skip
def test_claims_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrustZoneError):
        SealingClaims(**{"personalization": OWNER, **wrong})


def test_everything_gives_another_key() -> None:
    platform = InsecurePlatform()
    changes: list[dict[str, Any]] = [
        {"personalization": bytes(64)}, {"rim": bytes(32)}, {"suite": SM}, {"debug": True},
        {"domain_class": "secure"}, {"name": "patients"}, {"name": "patients", "version": 1}, {"name": "patient"},
    ]  # fmt: skip
    keys = {platform.sealing_key(claims) for claims in (MEASURED, *(replace(MEASURED, **change) for change in changes))}
    assert len(keys) == len(changes) + 1
    assert platform.sealing_key(MEASURED) == platform.sealing_key(MEASURED)
    assert InsecurePlatform().sealing_key(MEASURED) not in keys


def test_it_is_measured() -> None:
    config = make_realm()
    variants = [config.replace(sealing=s) for s in (None, Sealing(), Sealing("owner"), Sealing("owner", 1))]
    assert len({variant.encode() for variant in variants}) == 4
    for variant in variants:
        assert DomainConfig.parse(variant.encode()) == variant
    for wrong in (("nobody", 0), ("measurement", 1), ("owner", -1), ("owner", MAX_VERSION + 1), ("owner", "1")):
        with pytest.raises(ConfigError, match="sealing"):
            Sealing(*wrong)


class World:
    """Realms of one owner's image on one machine, as the monitor answers them (``vambrace.host.realm``)."""

    def __init__(self) -> None:
        self.platform = InsecurePlatform()

    def realm(self, version: int | None = 0, **changes: Any) -> agent.Sealing:
        base = replace(OWNED, **changes)

        def key(asked: int) -> bytes:
            assert version is not None and asked <= version, "an agent asks for no more than it may"
            return self.platform.sealing_key(replace(base, version=asked))

        return agent.Sealing(version, key)


def test_the_same_opens_it_again() -> None:
    world = World()
    for data in (b"", b"a secret of some length", bytes(agent.MAX_DATA)):
        sealed = world.realm().seal("analysis", data)
        assert world.realm().unseal("analysis", sealed) == data
        assert sealed != world.realm().seal("analysis", data)
        assert not data or data not in sealed


def test_the_next_version_opens_it_and_an_older_one_does_not() -> None:
    world = World()
    old, new = world.realm(1), world.realm(2)
    assert new.unseal("analysis", old.seal("analysis", b"kept")) == b"kept"
    with pytest.raises(AgentError, match="newer version"):
        old.unseal("analysis", new.seal("analysis", b"new"))


@pytest.mark.parametrize(
    "other", [{"personalization": bytes(64)}, {"name": "other"}, {"debug": True}, {"name": "", "rim": bytes(32)}]
)
def test_others_do_not(other: dict[str, Any]) -> None:
    world = World()
    with pytest.raises(AgentError, match="somebody else"):
        world.realm(**other).unseal("analysis", world.realm().seal("analysis", b"x"))


def test_neither_another_application_nor_another_machine() -> None:
    sealed = World().realm().seal("analysis", b"x")
    world = World()
    with pytest.raises(AgentError):
        world.realm().unseal("analysis", sealed)
    with pytest.raises(AgentError):
        world.realm().unseal("report", world.realm().seal("analysis", b"x"))


def test_what_was_changed_does_not_open() -> None:
    realm = World().realm(1 << 20)
    sealed = realm.seal("analysis", b"secret")
    for place in range(len(sealed)):
        with pytest.raises(AgentError):
            realm.unseal("analysis", sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :])
    for short in (b"", sealed[:20], sealed[:-1], sealed + b"x", bytes(1 << 20)):
        with pytest.raises(AgentError):
            realm.unseal("analysis", short)


def test_a_realm_that_seals_nothing() -> None:
    realm = World().realm(None)
    for work in (realm.seal, realm.unseal):
        with pytest.raises(AgentError, match="seals nothing"):
            work("analysis", b"\x01" + bytes(100))
    with pytest.raises(AgentError, match="at most"):
        World().realm().seal("analysis", bytes(agent.MAX_DATA + 1))
