"""Claims of genuine Arm CCA tokens, typed and not verified.

Sources: draft-ffm-rats-cca-token-00 to -03 and the Realm Management Monitor specification (Arm DEN0137), A7.2.3.
Other than in our profile, a digest has 32, 48 or 64 bytes whatever hash the token names, as the claims'
definitions have it: published tokens make use of that.
"""

from __future__ import annotations

from typing import Any, Final

from vambrace.attest import claims as c
from vambrace.attest.claims import (
    COMPONENT_COUNTERSIGNERS,
    COMPONENT_DIGEST,
    COMPONENT_HASH,
    COMPONENT_LIVE,
    COMPONENT_SIGNER,
    COMPONENT_TYPE,
    COMPONENT_VERSION,
    DIGEST_BYTES,
    PLATFORM_NAMES,
    REALM_NAMES,
    BootKey,
    Component,
    ExtensionDevice,
    UnverifiedCcaRealm,
    UnverifiedPlatform,
)
from vambrace.attest.claimset import ClaimSet

#: The only client of a platform token (2.0) is the Realm Management Security Domain.
REALM_CLIENT: Final = 1
_STATES: Final = range(0x00, 0x70, 0x10)
MAX_DEVICES: Final = 64
MAX_BOOT_KEYS: Final = 16
MAX_COUNTERSIGNERS: Final = 16

_HASH, _MEASUREMENTS, _CHAIN, _IDE, _PROTOCOL, _VCA, _TYPE, _ENCRYPTION = range(1, 9)
DEVICE_NAMES: Final = {
    _HASH: "hash algorithm",
    _MEASUREMENTS: "measurements digest",
    _CHAIN: "certificate chain digest",
    _IDE: "integrity and data encryption",
    _PROTOCOL: "protocol",
    _VCA: "digest of version, capabilities and algorithms",
    _TYPE: "type",
    _ENCRYPTION: "encryption",
}
_SPDM: Final = frozenset(f"spdm-{v}" for v in ("1.2.0", "1.2.1", "1.2.2", "1.2.3", "1.3.0", "1.3.1", "1.3.2", "1.4.0"))
_ENCRYPTED_TYPE: Final = "cxl-type-3"
_KEY_NAME, _KEY_ARRAY, _KEY_INDEX, _KEY_DIGEST = range(1, 5)
BOOT_KEY_NAMES: Final = {_KEY_NAME: "name", _KEY_ARRAY: "active array", _KEY_INDEX: "index", _KEY_DIGEST: "hash"}


def decode_platform(claims: Any) -> UnverifiedPlatform:
    """Of profile 1.0.0, under either of its names. Raises ``MalformedClaim``; so does every function here."""
    reader = ClaimSet(claims, "platform token", PLATFORM_NAMES)
    platform = UnverifiedPlatform(**_platform(reader))
    reader.finish()
    return platform


def decode_platform_2(claims: Any) -> UnverifiedPlatform:
    """Of profile 2.0.0."""
    reader = ClaimSet(claims, "platform token", PLATFORM_NAMES)
    platform = UnverifiedPlatform(
        **_platform(reader),
        client_id=reader.one_of(c.CLIENT_ID, {REALM_CLIENT}),
        manufacturing_config=reader.filled(c.MANUFACTURING_CONFIG) if reader.has(c.MANUFACTURING_CONFIG) else None,
        extensions=_devices(reader) if reader.has(c.EXTENSIONS) else (),
        boot_keys=_boot_keys(reader) if reader.has(c.BOOT_KEYS) else (),
        peer_signers=reader.filled(c.PEER_SIGNERS) if reader.has(c.PEER_SIGNERS) else None,
    )
    reader.finish()
    return platform


def decode_realm(claims: Any) -> UnverifiedCcaRealm:
    """Of profile 1.0.0, and of the time before realm tokens had a profile."""
    reader = ClaimSet(claims, "realm token", REALM_NAMES)
    realm = UnverifiedCcaRealm(**_realm(reader))
    reader.finish()
    return realm


def decode_realm_2(claims: Any) -> UnverifiedCcaRealm:
    """Of profile 2.0.0."""
    reader = ClaimSet(claims, "realm token", REALM_NAMES)
    live = bool(reader.one_of(c.LFA_POLICY, {0, 1})) if reader.has(c.LFA_POLICY) else None
    realm = UnverifiedCcaRealm(
        **_realm(reader),
        ueid=c.read_ueid(reader),
        private_mec=bool(reader.one_of(c.MEC_POLICY, {0, 1})),
        live_activation=live,
    )
    reader.finish()
    return realm


def _platform(reader: ClaimSet) -> dict[str, Any]:
    algorithm = reader.hash_name(c.PLATFORM_HASH)
    lifecycle = c.read_lifecycle(reader)
    if lifecycle >> 8 not in _STATES:
        reader.refuse(f"the platform token is in a life cycle state that is not known: {lifecycle:#06x}", c.LIFECYCLE)
    service = c.VERIFICATION_SERVICE
    return {
        "profile": reader.text(c.PROFILE),
        "challenge": reader.octets(c.CHALLENGE, *DIGEST_BYTES),
        "implementation_id": reader.octets(c.IMPLEMENTATION_ID, 32),
        "ueid": c.read_ueid(reader),
        "config": reader.get(c.CONFIG, bytes),
        "lifecycle": lifecycle,
        "hash_algorithm": algorithm,
        "components": tuple(_component(component, algorithm) for component in c.read_components(reader)),
        "verification_service": reader.text(service) if reader.has(service) else None,
    }


def _realm(reader: ClaimSet) -> dict[str, Any]:
    return {
        "profile": reader.text(c.PROFILE) if reader.has(c.PROFILE) else None,
        "challenge": reader.octets(c.CHALLENGE, 64),
        "personalization": reader.octets(c.PERSONALIZATION, 64),
        "measurement": reader.octets(c.MEASUREMENT, *DIGEST_BYTES),
        "rems": c.read_rems(reader, *DIGEST_BYTES),
        "hash_algorithm": reader.hash_name(c.MEASUREMENT_HASH),
        "rak": reader.get(c.RAK, bytes),
        "rak_hash_algorithm": reader.hash_name(c.RAK_HASH),
    }


def _component(reader: ClaimSet, default_hash: str) -> Component:
    component = Component(
        name=reader.text_or_none(COMPONENT_TYPE) or "",
        digest=reader.octets(COMPONENT_DIGEST, *DIGEST_BYTES),
        signer=reader.octets(COMPONENT_SIGNER, *DIGEST_BYTES),
        hash_algorithm=reader.hash_name(COMPONENT_HASH) if reader.has(COMPONENT_HASH) else default_hash,
        version=reader.text_or_none(COMPONENT_VERSION),
    )
    if reader.has(COMPONENT_LIVE):
        reader.get(COMPONENT_LIVE, bool)
    if reader.has(COMPONENT_COUNTERSIGNERS):
        _check_countersigners(reader)
    reader.finish()
    return component


def _check_countersigners(reader: ClaimSet) -> None:
    """They are further signers, of whom nothing is demanded: the measurement and the signer are appraised."""
    signers = reader.get(COMPONENT_COUNTERSIGNERS, list)
    if not 1 <= len(signers) <= MAX_COUNTERSIGNERS:
        reader.refuse(f"the {reader.half} has {len(signers)} countersigners", COMPONENT_COUNTERSIGNERS)
    if not all(isinstance(signer, bytes) and len(signer) in DIGEST_BYTES for signer in signers):
        reader.refuse(f"the {reader.half} has an invalid countersigner", COMPONENT_COUNTERSIGNERS)


def _devices(reader: ClaimSet) -> tuple[ExtensionDevice, ...]:
    half = "extension of the platform token"
    return tuple(_device(device) for device in reader.maps(c.EXTENSIONS, half, DEVICE_NAMES, MAX_DEVICES))


def _device(reader: ClaimSet) -> ExtensionDevice:
    protocol = reader.text(_PROTOCOL)
    kind = reader.text(_TYPE) if reader.has(_TYPE) else None
    device = ExtensionDevice(
        measurements_digest=reader.octets(_MEASUREMENTS, *DIGEST_BYTES),
        certificate_chain_digest=reader.octets(_CHAIN, *DIGEST_BYTES),
        uses_ide=reader.get(_IDE, bool),
        protocol=protocol,
        hash_algorithm=reader.hash_name(_HASH) if reader.has(_HASH) else None,
        vca_digest=reader.octets(_VCA, *DIGEST_BYTES) if protocol in _SPDM else None,
        device_type=kind,
        encryption=reader.one_of(_ENCRYPTION, {0, 1, 2}) if kind == _ENCRYPTED_TYPE else None,
    )
    reader.finish()  # also: what only another protocol or type has
    return device


def _boot_keys(reader: ClaimSet) -> tuple[BootKey, ...]:
    half = "boot key of the platform token"
    return tuple(_boot_key(key) for key in reader.maps(c.BOOT_KEYS, half, BOOT_KEY_NAMES, MAX_BOOT_KEYS))


def _boot_key(reader: ClaimSet) -> BootKey:
    key = BootKey(
        name=reader.text(_KEY_NAME),
        active_array=reader.get(_KEY_ARRAY, int),
        index=reader.get(_KEY_INDEX, int),
        digest=reader.octets(_KEY_DIGEST, *DIGEST_BYTES),
    )
    reader.finish()
    return key
