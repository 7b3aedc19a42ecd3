"""Endorsements and reference values of Arm CCA (draft-ydb-rats-cca-endorsements-04), out of a verified CoRIM.

Of a platform: its software components, its configuration, and the keys of its machines. Of a Realm: its initial
measurement and, where they are conditions, its extensible measurements and its personalization value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from vambrace.attest.claims import Component
from vambrace.attest.corim import Corim, Environment, Measurement
from vambrace.errors import ComponentChanged, MalformedEvidence

PLATFORM_PROFILE: Final = "tag:arm.com,2025:cca_platform#1.0.0"
REALM_PROFILE: Final = "tag:arm.com,2025:cca_realm#1.0.0"

_COMPONENT: Final = "cca.software-component"
_CONFIG: Final = "cca.platform-config"
_RIM, _RPV = "cca.rim", "cca.rpv"
_REMS: Final = ("cca.rem0", "cca.rem1", "cca.rem2", "cca.rem3")
_IMPLEMENTATION_BYTES, _UEID_BYTES, _RPV_BYTES = 32, 33, 64
_UEID_RANDOM: Final = 0x01


@dataclass(frozen=True)
class PlatformValues:
    """What a platform of ``implementation_id`` must have measured, in any order, and how it is configured."""

    implementation_id: bytes
    components: tuple[Measurement, ...]
    config: Measurement | None = None

    def difference(self, measured: Sequence[Component]) -> ComponentChanged | None:
        """Why these components are not the ones described; each must be, and none may be missing."""
        for component in measured:
            if not any(_meets(component, reference) for reference in self.components):
                known = component.name in {reference.name for reference in self.components}
                what = "differs from its reference value" if known else "has no reference value"
                name = component.name or component.digest.hex()[:16]
                return ComponentChanged(f"component {name} {what}", component=name)
        for reference in self.components:
            if not any(_meets(component, reference) for component in measured):
                name = reference.name or reference.digests[0][1].hex()[:16]
                return ComponentChanged(f"component {name} was not measured at boot", component=name)
        return None

    def configured(self, config: bytes) -> bool:
        """Whether ``config`` is as described, in the bits that count (draft-ietf-rats-corim, raw values)."""
        if self.config is None:
            return True
        expected = self.config.raw or b""
        mask = self.config.mask if self.config.mask is not None else b"\xff" * len(expected)
        if len(config) != len(expected):
            return False
        return all((a ^ b) & bits == 0 for a, b, bits in zip(config, expected, mask, strict=True))


@dataclass(frozen=True)
class PlatformKey:
    """The key of one machine."""

    implementation_id: bytes
    ueid: bytes
    key: EllipticCurvePublicKey


@dataclass(frozen=True)
class RealmValues:
    """A Realm that is expected. ``registers`` and ``personalization`` are conditions where they are given."""

    measurement: bytes
    hash_algorithm: str
    registers: tuple[bytes | None, bytes | None, bytes | None, bytes | None] = (None, None, None, None)
    personalization: bytes | None = None

    def registers_meet(self, rems: Sequence[bytes]) -> bool:
        """Whether the four registers have the values that are conditions."""
        return all(expected in (None, rem) for expected, rem in zip(self.registers, rems, strict=True))


def read_platform(verified: Corim) -> tuple[tuple[PlatformValues, ...], tuple[PlatformKey, ...]]:
    """Reference values and keys in a CoRIM of the platform profile. Raises ``MalformedEvidence``; so do all below."""
    if verified.profile != PLATFORM_PROFILE:
        raise MalformedEvidence("the CoRIM is not of the CCA platform profile")
    values = tuple(_platform(triple.environment, triple.measurements) for triple in verified.references)
    keys = tuple(_key(triple.environment, triple.key) for triple in verified.keys)
    return values, keys


def read_realm(verified: Corim) -> tuple[RealmValues, ...]:
    """The Realms in a CoRIM of the Realm profile."""
    if verified.profile != REALM_PROFILE or verified.keys:
        raise MalformedEvidence("the CoRIM is not of the CCA Realm profile")
    return tuple(_realm(triple.environment, triple.measurements) for triple in verified.references)


def _platform(environment: Environment, measurements: Sequence[Measurement]) -> PlatformValues:
    components = tuple(m for m in measurements if m.key == _COMPONENT)
    configs = [m for m in measurements if m.key == _CONFIG]
    if len(components) + len(configs) != len(measurements) or len(configs) > 1 or not components:
        raise MalformedEvidence("the reference values of a CCA platform have something that is not understood")
    for component in components:
        if not component.digests or component.signer is None or component.raw is not None:
            raise MalformedEvidence("a reference value of a CCA platform lacks its digest or signer")
        if len({algorithm for algorithm, _ in component.digests}) != len(component.digests):
            raise MalformedEvidence("a reference value of a CCA platform has two digests of one hash")
    for config in configs:
        if config.raw is None or config.digests or config.name or config.version or config.signer:
            raise MalformedEvidence("the reference configuration of a CCA platform is not a value")
    return PlatformValues(_implementation(environment), components, configs[0] if configs else None)


def _key(environment: Environment, key: EllipticCurvePublicKey) -> PlatformKey:
    ueid = environment.instance
    if ueid is None or len(ueid) != _UEID_BYTES or ueid[0] != _UEID_RANDOM:
        raise MalformedEvidence("the key of a CCA platform is for no instance identity")
    return PlatformKey(_implementation(environment), ueid, key)


def _implementation(environment: Environment) -> bytes:
    if environment.class_id is None or len(environment.class_id) != _IMPLEMENTATION_BYTES:
        raise MalformedEvidence("a CCA platform is named by its implementation id, 32 bytes")
    return environment.class_id


def _realm(environment: Environment, measurements: Sequence[Measurement]) -> RealmValues:
    values = {measurement.key: measurement for measurement in measurements}
    if len(values) != len(measurements) or not values.keys() <= {_RIM, _RPV, *_REMS} or _RIM not in values:
        raise MalformedEvidence("the reference values of a Realm lack its measurement, or have something unknown")
    algorithm, measurement = _digest(values[_RIM])
    if environment.class_id != measurement or environment.instance is not None:
        raise MalformedEvidence("a Realm is named by another measurement than its reference value")
    first, second, third, fourth = (_register(values.get(key), algorithm) for key in _REMS)
    return RealmValues(measurement, algorithm, (first, second, third, fourth), _personalization(values.get(_RPV)))


def _digest(measurement: Measurement) -> tuple[str, bytes]:
    match measurement:
        case Measurement(digests=((algorithm, digest),), name=None, version=None, signer=None, raw=None):
            return algorithm, digest
        case _:
            raise MalformedEvidence("a measurement of a Realm is not one digest")


def _register(measurement: Measurement | None, algorithm: str) -> bytes | None:
    if measurement is None:
        return None
    named, digest = _digest(measurement)
    if named != algorithm:
        raise MalformedEvidence("a Realm has measurements of two hashes")
    return digest


def _personalization(measurement: Measurement | None) -> bytes | None:
    match measurement:
        case None:
            return None
        case Measurement(digests=(), name=None, version=None, signer=None, raw=bytes(raw), mask=None) if (
            len(raw) <= _RPV_BYTES
        ):
            # RMM pads what is shorter with zeros (DEN0137, RmiRealmParams).
            return raw.ljust(_RPV_BYTES, b"\0")
        case _:
            raise MalformedEvidence("the personalization value of a Realm is not a value of at most 64 bytes")


def _meets(component: Component, reference: Measurement) -> bool:
    return (
        (component.hash_algorithm, component.digest) in reference.digests
        and component.signer == reference.signer
        and reference.name in (None, component.name)
        and reference.version in (None, component.version)
    )
