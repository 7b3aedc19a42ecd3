"""Each rule of the table of classes, in a configuration: what a class has not, its configuration cannot say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from config_factory import MIB, make_application, make_disk, make_endpoint, make_normal, make_realm, make_secure

from vambrace.canonical import canonical
from vambrace.classes import CLASSES, NORMAL, OPTIONAL, REALM, REQUIRED, SECURE, DomainClass, domain_class
from vambrace.config import Disk, DomainConfig, Zone
from vambrace.errors import ConfigError

MAKERS: dict[str, Callable[..., DomainConfig]] = {"normal": make_normal, "secure": make_secure, "realm": make_realm}
EACH = pytest.mark.parametrize("name", sorted(CLASSES))


def test_the_table_is_the_design_s() -> None:
    rows = {
        "measured": (False, True, True),
        "attested": (False, True, True),
        "encrypted": (False, False, True),
        "ends_itself": (False, False, True),
    }
    for row, wanted in rows.items():
        assert tuple(getattr(kind, row) for kind in (NORMAL, SECURE, REALM)) == wanted
    assert (SECURE.signature, REALM.signature) == (REQUIRED, OPTIONAL)
    assert list(CLASSES.values()) == [NORMAL, SECURE, REALM]


@pytest.mark.parametrize("kind", CLASSES.values(), ids=str)
def test_the_table_makes_sense(kind: DomainClass) -> None:
    """No attestation of what is not measured, no verdict without a token, no encryption that nobody attests."""
    assert kind.measured or not (kind.attested or kind.signature == REQUIRED)
    assert kind.attested or not (kind.verdict or kind.encrypted or kind.ends_itself or kind.messages)
    # Something stands behind the start of whatever is attested: its owner's verdict, or a signature on its image.
    assert not kind.attested or kind.verdict or kind.signature == REQUIRED


@EACH
def test_round_trip(name: str) -> None:
    config = MAKERS[name]()
    assert config.kind is CLASSES[name] is domain_class(name)
    assert DomainConfig.parse(config.encode()) == config
    assert config.as_object()["class"] == name


def test_the_class_is_measured() -> None:
    """A Secure VM's configuration is never a Realm's: what was signed as one is no image of the other."""
    secure = make_secure()
    realm = make_realm(zones=secure.zones)
    assert realm.encode() != secure.encode()
    for name in ("realm", "normal", "other", ""):
        with pytest.raises(ConfigError):
            DomainConfig.parse(canonical(secure.as_object() | {"class": name}))
    with pytest.raises(ConfigError, match="'other' is not known"):
        domain_class("other")


FOREIGN: list[tuple[str, dict[str, Any], str]] = [
    ("secure", {"zones": (Zone("system", 128 * MIB, 80), Zone("analysis", 16 * MIB, 80))}, "is not encrypted"),
    ("secure", {"zones": (Zone("system", 128 * MIB, 0, True), Zone("analysis", 16 * MIB, 0))}, "is not encrypted"),
    ("secure", {"cipher": "sm4-gcm"}, "cipher: a Secure VM has none"),
    ("secure", {"verdict_seconds": 60}, "verdict_seconds: a Secure VM has none"),
    ("secure", {"endpoints": (make_endpoint(),)}, "endpoints: a Secure VM has none"),
    ("secure", {"owner": ""}, "owner"),
    ("secure", {"disks": (Disk("base", "ab" * 32, 8192),)}, "not those of a Secure VM"),
    ("realm", {"disks": (Disk("base", "ab" * 32, 8192),)}, "not those of a Realm"),
    ("realm", {"applications": (), "zones": (Zone("system", 128 * MIB, 80),)}, "there are none"),
    ("normal", {"disks": (make_disk(),)}, "not those of a Normal VM"),
    ("normal", {"owner": make_realm().owner}, "owner: a Normal VM has none"),
    ("normal", {"hash": "sm3"}, "hash: a Normal VM has none"),
    ("normal", {"collect_seconds": 1}, "collect_seconds: a Normal VM has none"),
    ("normal", {"zones": (Zone("system", 256 * MIB, 10),)}, "is not encrypted"),
    (
        "normal",
        {"applications": (make_application(),), "zones": (Zone("system", 256 * MIB, 0), Zone("analysis", 16 * MIB, 0))},
        "applications: a Normal VM has none",
    ),
]


@pytest.mark.parametrize(("name", "changes", "words"), FOREIGN)
def test_what_a_class_has_not_is_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MAKERS[name](**changes)


@pytest.mark.parametrize("key", ["owner", "hash", "cipher", "applications", "verdict_seconds", "form"])
def test_what_a_class_has_not_cannot_be_spelled_either(key: str) -> None:
    """Not even with the value that it would have by default."""
    value = make_realm().as_object()[key]
    with pytest.raises(ConfigError, match=f"unknown key {key}"):
        DomainConfig.parse(canonical(make_normal().as_object() | {key: value}))


@pytest.mark.parametrize("size", [0, 4095, 4097, 1 << 41])
def test_a_plain_disk_has_whole_blocks(size: int) -> None:
    with pytest.raises(ConfigError, match="disk root"):
        Disk("root", "ab" * 32, size)
