"""A token for people: as JSON. Nothing here is verified."""

from __future__ import annotations

from typing import Any

from cryptography import x509

from vambrace.attest.chain import UNREADABLE
from vambrace.attest.claims import (
    Component,
    UnverifiedCcaRealm,
    UnverifiedPlatform,
    UnverifiedRealm,
    UnverifiedVambraceRealm,
)
from vambrace.attest.policy import lifecycle_name
from vambrace.attest.token import decode_token
from vambrace.errors import MalformedEnvelope


def describe(token: bytes) -> dict[str, Any]:
    """A JSON-able, readable rendering of ``token``, of any profile; says itself that nothing was verified.

    Raises ``MalformedEvidence``.
    """
    evidence = decode_token(token)
    return {
        "verified": False,
        "size": len(token),
        "profile": evidence.profile.name,
        "collection": evidence.collection.value,
        "platform": {
            **_platform(evidence.platform),
            "signed-with": evidence.platform_message.algorithm.name,
            "endorsement": [_subject(certificate) for certificate in evidence.x5chain],
        },
        "realm": {**_realm(evidence.realm), "signed-with": evidence.realm_message.algorithm.name},
    }


def describe_component(component: Component) -> dict[str, Any]:
    """A JSON-able rendering of one component."""
    described = {"name": component.name, "digest": component.digest.hex()}
    if component.signer is not None:
        described["signer"] = component.signer.hex()
    if component.version is not None:
        described["version"] = component.version
    return described


def _platform(platform: UnverifiedPlatform) -> dict[str, Any]:
    described: dict[str, Any] = {
        "profile": platform.profile,
        "instance-id": platform.ueid.hex(),
        "implementation-id": platform.implementation_id.hex(),
        "lifecycle": f"{platform.lifecycle:#06x} ({lifecycle_name(platform.lifecycle)})",
        "config": platform.config.hex(),
        "hash-algorithm": platform.hash_algorithm,
        "components": [describe_component(component) for component in platform.components],
        "binds-key": platform.challenge.hex(),
    }
    if platform.verification_service is not None:
        described["verification-service"] = platform.verification_service
    if platform.client_id is not None:
        described["client-id"] = platform.client_id
    if platform.manufacturing_config is not None:
        described["manufacturing-config"] = platform.manufacturing_config.hex()
    if platform.extensions:
        described["extensions"] = [_plain(device) for device in platform.extensions]
    if platform.boot_keys:
        described["boot-keys"] = [_plain(key) for key in platform.boot_keys]
    if platform.peer_signers is not None:
        described["peer-signers"] = platform.peer_signers.hex()
    return described


def _realm(realm: UnverifiedRealm) -> dict[str, Any]:
    described: dict[str, Any] = {
        "profile": realm.profile,
        "measurement": realm.measurement.hex(),
        "hash-algorithm": realm.hash_algorithm,
        "extensible-measurements": [rem.hex() for rem in realm.rems],
        "personalization": realm.personalization.hex(),
        "challenge": realm.challenge.hex(),
        "key": realm.rak.hex(),
        "key-hash-algorithm": realm.rak_hash_algorithm,
    }
    match realm:
        case UnverifiedVambraceRealm():
            return {"instance": realm.instance.hex(), **described} | {
                "key-storage": realm.key_storage,
                "cache-partition": realm.cache_partition,
                "class": realm.domain_class,
                "debug": realm.debug,
                "insecure": realm.insecure,
            }
        case UnverifiedCcaRealm():
            newer = {
                "instance-id": realm.ueid,
                "private-mec": realm.private_mec,
                "live-activation": realm.live_activation,
            }
            return described | {key: _text(value) for key, value in newer.items() if value is not None}
        case _:
            return described


def _plain(entry: Any) -> dict[str, Any]:
    return {key.replace("_", "-"): _text(value) for key, value in vars(entry).items() if value is not None}


def _text(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _subject(certificate: bytes) -> str:
    try:
        name = x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
    except UNREADABLE:
        raise MalformedEnvelope("x5chain has something that is not a certificate") from None
    return name.encode("ascii", "backslashreplace").decode()
