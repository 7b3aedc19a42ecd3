"""The measured configuration: canonical, strict, and the same for everybody."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from config_factory import MIB, make_application, make_certificate, make_disk, make_endpoint, make_realm, owner
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

import vambrace
from vambrace.cache import CacheShare
from vambrace.canonical import canonical
from vambrace.certificate import certificate_der, certificate_pem, owner_public_key
from vambrace.checks import check_domain_name
from vambrace.config import DomainConfig, Zone
from vambrace.errors import ConfigError, UsageError

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


def test_round_trip_is_exact() -> None:
    config = make_realm(("analysis", "report"))
    encoded = config.encode()
    assert DomainConfig.parse(encoded) == config
    assert DomainConfig.parse(encoded).encode() == encoded
    assert b" " not in encoded.replace(config.owner.encode(), b"").split(b'"owner"')[0].split(b'"cmdline"')[1]


@given(
    command=st.lists(TEXT.filter(bool), min_size=1, max_size=4).filter(lambda words: "=" not in words[0]),
    environment=st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), TEXT, max_size=4),
    percents=st.lists(st.integers(0, 100), min_size=1, max_size=3),
    vcpus=st.integers(1, 8),
)
@settings(max_examples=50, deadline=None)
def test_any_valid_configuration_round_trips(
    command: list[str], environment: dict[str, str], percents: list[int], vcpus: int
) -> None:
    names = [f"app{i}" for i in range(len(percents))]
    config = make_realm(
        zones=(
            Zone("system", 96 * MIB, max(percents), True),
            *(Zone(name, 16 * MIB, percent) for name, percent in zip(names, percents, strict=True)),
        ),
        applications=tuple(make_application(name, command=tuple(command), environment=environment) for name in names),
        vcpus=vcpus,
    )
    assert DomainConfig.parse(config.encode()) == config


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_refused_or_another_configuration(data: st.DataObject) -> None:
    encoded = make_realm().encode()
    place = data.draw(st.integers(0, len(encoded) - 1))
    changed = bytearray(encoded)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        parsed = DomainConfig.parse(bytes(changed))
    except ConfigError:
        return
    assert parsed.encode() == bytes(changed) != encoded


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        DomainConfig.parse(data)


def changed(path: list[Any], value: Any) -> bytes:
    top = make_realm().as_object()
    target: Any = top
    for step in path[:-1]:
        target = target[step]
    if value is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return canonical(top)


def test_a_configuration_without_endpoints_is_what_it_was() -> None:
    """Measurements of images that name no endpoint stay what they were; no other spelling of none is read."""
    config = make_realm()
    assert b"endpoints" not in config.encode()
    with pytest.raises(ConfigError, match="unknown key endpoints"):
        DomainConfig.parse(canonical(config.as_object() | {"endpoints": []}))


def test_a_part_of_the_cache_is_measured() -> None:
    """And a configuration that asks for none is what it was."""
    plain = make_realm()
    assert b"cache" not in plain.encode()
    configs = [plain, *(make_realm(cache=CacheShare(*share)) for share in (("required", 1), ("required", 25)))]
    configs += [make_realm(cache=CacheShare("preferred", 25)), make_realm(cache=CacheShare("preferred", 100))]
    assert [DomainConfig.parse(config.encode()) for config in configs] == configs
    assert len({config.encode() for config in configs}) == 5
    assert [bool(config.cache and config.cache.required) for config in configs] == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({"demand": "wanted", "percent": 5}, "'wanted' is not known"),
        ({"demand": "none", "percent": 5}, "'none' is not known"),
        ({"demand": 1, "percent": 5}, "demand must be a string"),
        ({"demand": "required"}, "percent is missing"),
        ({"demand": "required", "percent": 0}, "percent is 0"),
        ({"demand": "required", "percent": 101}, "percent is 101"),
        ({"demand": "required", "percent": True}, "percent must be an integer"),
        ({"demand": "required", "percent": "5"}, "percent must be an integer"),
        ({"demand": "required", "percent": 5, "colours": 3}, "unknown key cache.colours"),
        (None, "cache must be an object"),
        ([], "cache must be an object"),
        ({}, "demand is missing"),
    ],
)
def test_each_mistake_in_a_part_of_the_cache(cache: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DomainConfig.parse(canonical(make_realm().as_object() | {"cache": cache}))


def test_endpoints_are_measured() -> None:
    records = make_endpoint()
    more = make_endpoint("results", role="connect", port=9000, realm="", measurement="ab" * 32)
    config = make_realm(endpoints=(records, more))
    assert DomainConfig.parse(config.encode()) == config
    variants = [
        config.replace(endpoints=(records.replace(**change), more))
        for change in (
            *({"name": "other"}, {"role": "connect"}, {"port": 8001}),
            *({"owner": "00" * 64}, {"realm": "x"}, {"realm": ""}, {"measurement": "00" * 32}),
        )
    ]
    assert len({variant.encode() for variant in (config, config.replace(endpoints=()), *variants)}) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Records"}, "valid name"),
        ({"role": "both"}, "role"),
        ({"port": 1023}, "port"),
        ({"port": 65536}, "port"),
        ({"port": True}, "port"),
        ({"owner": ""}, "owner"),
        ({"owner": "ef" * 32}, "owner"),
        ({"realm": "a/b"}, "valid name"),
        ({"realm": None}, "realm must be a string"),
        ({"measurement": "ab"}, "measurement"),
        ({"measurement": "AB" * 32}, "measurement"),
        ({"pin": 1}, "unknown key"),
    ],
)
def test_each_mistake_in_an_endpoint(changes: dict[str, Any], message: str) -> None:
    top = make_realm().as_object()
    top["endpoints"] = [make_endpoint().as_dict() | changes]
    with pytest.raises(ConfigError, match=message):
        DomainConfig.parse(canonical(top))


def test_endpoints_of_one_realm() -> None:
    """Names differ, and so do ports that the agent listens on; several offers may lead to one program."""
    offer, connect = make_endpoint(), make_endpoint("other", role="connect")
    make_realm(endpoints=(offer, offer.replace(name="other")))
    for endpoints in ((offer, connect), (connect, offer), (connect, connect.replace(name="more"))):
        with pytest.raises(ConfigError, match="port 8000"):
            make_realm(endpoints=endpoints)
    with pytest.raises(ConfigError, match="twice"):
        make_realm(endpoints=(offer, offer.replace(port=9000)))
    many = tuple(make_endpoint(f"e{number}") for number in range(17))
    assert make_realm(endpoints=many[:16])
    with pytest.raises(ConfigError, match="17 endpoints"):
        make_realm(endpoints=many)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], "vambrace.config/2", "schema"),
        (["surprise"], 1, "unknown key surprise"),
        (["zones", 1, "follow"], True, "unknown key"),
        (["applications", 0, "user"], "root", "unknown key"),
        (["vcpus"], True, "vcpus"),
        (["vcpus"], "1", "vcpus"),
        (["vcpus"], 0, "vcpus"),
        (["debug"], 1, "debug"),
        (["hash"], "md5", "hash"),
        (["cipher"], "none", "cipher"),
        (["form"], "container", "form"),
        (["name"], "Upper", "valid name"),
        (["name"], "a" * 33, "valid name"),
        (["name"], "-a", "valid name"),
        (["cmdline"], "a\nb", "cmdline"),
        (["cmdline"], "a" * 2048, "cmdline"),
        (["owner"], ..., "owner"),
        (["owner"], "x", "owner"),
        (["verdict_seconds"], 0, "verdict_seconds"),
        (["zones", 0, "percent"], 101, "percent"),
        (["zones", 1, "percent"], -1, "percent"),
        (["zones", 1, "percent"], 81, "highest"),
        (["zones", 1, "memory"], 16 * MIB + 1, "multiple of 2 MiB"),
        (["zones", 1, "memory"], 14 * MIB, "memory"),
        (["zones", 0, "memory"], 94 * MIB, "memory"),
        (["zones", 1, "memory"], 1 << 41, "memory"),
        (["zones", 1, "name"], "other", "zones"),
        (["zones"], [], "zones"),
        (["applications"], [], "none"),
        (["applications", 0, "command"], [], "command"),
        (["applications", 0, "command"], ["a\0"], "NUL"),
        (["applications", 0, "command"], ["a=b"], "has a '='"),
        (["applications", 0, "environment"], {"A=": "x"}, "environment"),
        (["applications", 0, "directory"], "/app/analysis/../other", "outside"),
        (["applications", 0, "directory"], "app/analysis", "outside"),
        (["applications", 0, "results"], ["/etc/passwd"], "outside"),
        (["applications", 0, "results"], ["/results/analysis"], "outside"),
        (["applications", 0, "results"], ["/results/analysis/a", "/results/analysis/a"], "twice"),
        (["disks", 0, "sha256"], "AB" * 32, "hexadecimal"),
        (["disks", 0, "data_size"], 4097, "multiples"),
        (["disks", 1, "name"], "base", "twice"),
    ],
)
def test_each_mistake_has_its_message(path: list[Any], value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DomainConfig.parse(changed(path, value))


def test_other_spellings_of_the_same_are_refused() -> None:
    encoded = make_realm().encode()
    value = json.loads(encoded)
    for data in (
        json.dumps(value).encode(),
        encoded + b"\n",
        encoded.replace(b'"vcpus":1', b'"vcpus":1.0'),
        encoded.replace(b'"vcpus":1', b'"vcpus":1,"vcpus":1'),
        encoded.replace(b'"vcpus":1', b'"vcpus":NaN'),
        encoded.replace(b'"quiet"', b'"\\u0071uiet"'),
        b"[" * 100_000,
        b" " * (300 << 10),
    ):
        with pytest.raises(ConfigError):
            DomainConfig.parse(data)


def test_sixteen_applications_are_too_many() -> None:
    assert len(make_realm(tuple(f"a{i}" for i in range(15))).zones) == 16
    with pytest.raises(ConfigError, match="at most 15") as caught:
        make_realm(tuple(f"a{i}" for i in range(16)))
    assert caught.value.hint


def test_names_are_unique_and_not_the_systems() -> None:
    with pytest.raises(ConfigError, match="twice"):
        make_realm(("a", "a"))
    with pytest.raises(ConfigError, match="system"):
        make_application("system")
    with pytest.raises(ConfigError, match="system"):
        make_realm(zones=(Zone("analysis", 128 * MIB, 80), Zone("analysis", 16 * MIB, 80)))


def test_personalization_is_of_the_owners_key() -> None:
    config = make_realm()
    key = x509.load_pem_x509_certificate(config.owner.encode()).public_key()
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert config.owner_spki == spki
    assert config.personalization() == hashlib.sha512(b"vambrace-rpv-1" + spki).digest()
    other = config.replace(owner=make_certificate()[0])
    assert other.personalization() != config.personalization()
    assert other.encode() != config.encode()


def test_only_p256_owners() -> None:
    with pytest.raises(ConfigError, match="P-256"):
        owner_public_key(make_certificate(ec.SECP384R1())[0])
    with pytest.raises(ConfigError, match="P-256"):
        owner_public_key(make_certificate(ec.SECP256K1())[0])


@given(st.integers(0, 2000), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_a_damaged_certificate_raises_nothing_else(place: int, flip: int) -> None:
    der = bytearray(certificate_der(owner()[0]))
    der[place % len(der)] ^= flip
    for data in (bytes(der), bytes(der[: place % len(der)])):
        with contextlib.suppress(ConfigError):
            assert len(owner_public_key(certificate_pem(data))) == 91


def test_certificate_has_one_spelling() -> None:
    pem = owner()[0]
    for other in (pem + "\n", pem.replace("\n", "\r\n"), "x" + pem, pem.rstrip(), pem + pem):
        with pytest.raises(ConfigError):
            certificate_der(other)


def test_zone_lookup() -> None:
    config = make_realm(("a", "b"))
    assert [config.zone_of(name) for name in ("system", "a", "b")] == [0, 1, 2]
    with pytest.raises(UsageError, match="no such"):
        config.zone_of("c")
    assert config.memory == 160 * MIB


def test_disk_without_a_tree_of_its_own_size() -> None:
    with pytest.raises(ConfigError):
        make_disk(size=4096, data_size=8192)


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a" * 32, "", "-a", "a-", "A", "a" * 33, "a_b", "\u0430", "a\n"])
def test_one_rule_for_names(name: str) -> None:
    """The host's API describes the very names that a configuration may have."""
    described = json.loads((Path(vambrace.__file__).parent / "host" / "openapi.yaml").read_text())
    request = described["components"]["schemas"]["DomainRequest"]["properties"]["name"]["pattern"]
    allowed = re.fullmatch(request.removeprefix("^").removesuffix("$"), name) is not None
    if allowed:
        check_domain_name(name)
    else:
        with pytest.raises(UsageError) as caught:
            check_domain_name(name)
        assert caught.value.hint


def test_networks_are_measured_in_their_order() -> None:
    config = make_realm(networks=("lab", "uplink"))
    assert DomainConfig.parse(config.encode()) == config
    others = (make_realm(), make_realm(networks=("lab",)), make_realm(networks=("uplink", "lab")))
    assert len({other.encode() for other in (config, *others)}) == 4
    assert b"networks" not in make_realm().encode()
    with pytest.raises(ConfigError, match="unknown key networks"):
        DomainConfig.parse(canonical(make_realm().as_object() | {"networks": []}))
    for networks in (["Lab"], ["lab", "lab"], [7], "lab", ["a", "b", "c", "d", "e"], [""]):
        with pytest.raises(ConfigError, match="network"):
            DomainConfig.parse(canonical(make_realm().as_object() | {"networks": networks}))
