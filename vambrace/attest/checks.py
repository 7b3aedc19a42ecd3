"""The checks of the verifier for our profile: one table, and what each row has to say.

A check returns its reason, or raises what refuses the evidence. ``ccachecks`` has the table for Arm CCA.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable, Container
from datetime import datetime
from typing import Final, NamedTuple

from vambrace.attest import profiles
from vambrace.attest.anchors import Anchors
from vambrace.attest.ccavalues import RealmValues
from vambrace.attest.claims import CACHE_PARTITIONS, Component, UnverifiedVambraceRealm
from vambrace.attest.policy import Policy, lifecycle_name
from vambrace.attest.references import ReferenceValues
from vambrace.attest.token import UnverifiedToken
from vambrace.attest.trustworthiness import (
    APPROVED_AT_BOOT,
    BAD,
    DOUBTFUL,
    GOOD,
    PLATFORM,
    REALM,
    UNRECOGNIZED,
    UNRECOGNIZED_CODE,
    Claim,
    Finding,
)
from vambrace.errors import (
    AnotherRealm,
    CacheShared,
    CertificateExpired,
    ChallengeMismatch,
    ComponentChanged,
    InsecurePlatform,
    MeasurementMismatch,
    OwnerMismatch,
    PolicyRefused,
    ReplayedToken,
    VerificationError,
)


class Case(NamedTuple):
    """All that a check may look at."""

    evidence: UnverifiedToken
    sha256: bytes
    anchors: Anchors
    policy: Policy
    now: datetime
    challenge: bytes
    instance: bytes | None
    seen: Container[bytes]
    expected_measurement: bytes | None
    expected_owner: bytes | None

    @property
    def realm(self) -> UnverifiedVambraceRealm:
        """The realm half, of our profile."""
        assert isinstance(self.evidence.realm, UnverifiedVambraceRealm)  # the table is chosen by the profile
        return self.evidence.realm


_ANY_REGISTERS: Final = (None, None, None, None)


class Concession(str):
    """The reason of a check that passed only because the policy allows it."""


class Check(NamedTuple):
    """One row of a table: what a good and a bad answer of ``run`` mean for which claim of which attester."""

    attester: str
    claim: Claim
    good: int
    bad: int
    run: Callable[[Case], str]

    def make(self, case: Case) -> Finding:
        try:
            reason = self.run(case)
        except VerificationError as error:
            return Finding(self.attester, self.claim, self.bad, error.message, error)
        value = DOUBTFUL if type(reason) is Concession else self.good
        return Finding(self.attester, self.claim, value, reason)


def profile(case: Case) -> str:
    word = "vambrace" if case.evidence.profile is profiles.VAMBRACE else "cca"
    if word not in case.policy.profiles:
        raise PolicyRefused("the token's profile is not one that the policy accepts", rule="platform.profiles")
    return f"the token's profile, {case.evidence.profile.name}, is accepted"


def validity(case: Case) -> str:
    """Of what was valid when it was loaded: whoever verifies may run for years."""
    if case.now.timestamp() > case.anchors.until:
        raise CertificateExpired("the reference values are out of their validity", hint="get the vendor's present ones")
    return "the reference values are valid"


# --- the platform ---------------------------------------------------------------------------------------


def _security(case: Case) -> str:
    if not case.realm.insecure:
        return "it has TrustZone and measured boot"
    if not case.policy.allow_insecure:
        raise InsecurePlatform(
            "the platform says that it is insecure",
            hint="it has no TrustZone or no measured boot; its token proves nothing",
        )
    return Concession("it says that it is insecure, and the policy allows that")


def lifecycle(case: Case) -> str:
    lifecycle = case.evidence.platform.lifecycle
    name = lifecycle_name(lifecycle)
    if not case.policy.accepts_lifecycle(lifecycle):
        raise InsecurePlatform(
            f"the platform's life cycle is {name}",
            hint="the vendor secures it at the factory, after certifying its key",
        )
    return f"its life cycle is {name}" if name == "secured" else Concession(f"its life cycle is {name}")


def _implementation(case: Case) -> str:
    known = [values.implementation_id for values in case.anchors.references]
    if not known:
        raise ComponentChanged(
            "there are no reference values for the platform",
            component="implementation",
            hint="get them from its vendor",
        )
    if not _of_implementation(case):
        raise ComponentChanged(
            "the platform is another implementation than the reference values describe",
            component="implementation",
        )
    return "its implementation is one that the vendor has published reference values for"


def machine(case: Case) -> str:
    if case.policy.platforms is None:
        return "any machine of the vendor's is accepted"
    if case.evidence.platform.ueid not in case.policy.platforms:
        raise PolicyRefused(
            f"the platform {case.evidence.platform.ueid.hex()} is not among those that the policy names",
            rule="platform.identities",
        )
    return "it is one of those that the policy names"


def _components(case: Case) -> str:
    differences = [_difference(case, values) for values in _of_implementation(case)]
    if not differences:
        raise ComponentChanged(
            "there are no reference values for this implementation", component="implementation"
        )
    if None not in differences:
        raise next(difference for difference in differences if difference)
    return f"all {len(case.evidence.platform.components)} components have their reference values"


def _of_implementation(case: Case) -> list[ReferenceValues]:
    theirs = case.evidence.platform.implementation_id
    return [values for values in case.anchors.references if values.implementation_id in (None, theirs)]


def _difference(case: Case, references: ReferenceValues) -> ComponentChanged | None:
    """What was measured and is not as in ``references``; the order counts, too."""
    measured, expected = case.evidence.platform.components, references.components
    if len(measured) == len(expected) and all(map(Component.meets, measured, expected)):
        return None
    missing = Counter(c.name for c in expected) - Counter(c.name for c in measured)
    for name in missing:
        return ComponentChanged(f"component {name} was not measured at boot", component=name)
    extra = Counter(c.name for c in measured) - Counter(c.name for c in expected)
    for name in extra:
        return ComponentChanged(f"component {name} has no reference value", component=name)
    for component in measured:
        if not any(component.meets(reference) for reference in expected):
            return ComponentChanged(
                f"component {component.name} differs from its reference value",
                component=component.name,
                hint="changed firmware or host, or reference values of another build",
            )
    for component, reference in zip(measured, expected, strict=True):
        if not component.meets(reference):
            return ComponentChanged(
                f"component {component.name} was measured out of order", component=component.name
            )
    raise AssertionError("they differ in nothing")


# --- the Realm ------------------------------------------------------------------------------------------


def _debug(case: Case) -> str:
    if not case.realm.debug:
        return "it is not in debug mode"
    if not case.policy.allow_debug:
        raise InsecurePlatform("the Realm runs in debug mode: its console is open to the operator")
    return Concession("it is in debug mode, and the policy allows that")


def _instance(case: Case) -> str:
    """Decides nothing that the challenge does not; it says more exactly what happened."""
    if case.instance is not None and case.realm.instance != case.instance:
        raise AnotherRealm(
            "the token is of another instance of this image",
            instance=case.realm.instance,
            hint="the host relays another Realm's: do not trust it",
        )
    return "its instance is the one that is meant" if case.instance else "its instance is a new one"


def replay(case: Case) -> str:
    if case.sha256 in case.seen:
        raise ReplayedToken("the token is an old one, of an earlier start", hint="the host replays it: do not trust it")
    return "the token was not seen before"


def freshness(case: Case) -> str:
    if not hmac.compare_digest(case.evidence.realm.challenge, case.challenge):
        raise ChallengeMismatch("the token answers another challenge", hint="the nonce is wrong, or it is not fresh")
    return "the token answers the challenge"


def measurement(case: Case) -> str:
    realm, accepted = case.evidence.realm, case.policy.measurements
    if realm.hash_algorithm != case.policy.hash_algorithm:
        raise MeasurementMismatch(f"the Realm was measured with {realm.hash_algorithm}")
    if case.expected_measurement is not None:
        _check_measurement(realm.measurement, frozenset({case.expected_measurement}))
    if accepted is None:
        return Concession("the policy accepts any image")
    if accepted:
        _check_measurement(realm.measurement, accepted)
    elif not _references_of(case):
        raise MeasurementMismatch(
            "nothing says what the Realm's measurement should be",
            hint="name it in the policy, or give reference values of the Realm",
        )
    return "its image and configuration have the measurement that is expected"


def _check_measurement(measured: bytes, accepted: frozenset[bytes]) -> None:
    if measured not in accepted:
        raise MeasurementMismatch(
            f"the Realm's measurement is {measured.hex()}, not {_expected(accepted)}",
            hint="the host started another image or configuration than this one",
        )


def _expected(measurements: frozenset[bytes]) -> str:
    return next(iter(measurements)).hex() if len(measurements) == 1 else "one of those that are accepted"


def registers(case: Case) -> str:
    """Run-time measurement registers: what the policy demands of them, and reference values of the Realm."""
    rems, demanded, references = case.evidence.realm.rems, case.policy.registers, _references_of(case)
    if demanded == _ANY_REGISTERS and not references:
        return "no run-time measurement is demanded"
    for index, (value, accepted) in enumerate(zip(rems, demanded, strict=True)):
        if accepted is not None and value not in accepted:
            raise PolicyRefused(
                f"the Realm's run-time measurement register {index} is {value.hex()}, which is not accepted",
                rule=f"realm.registers.{index}",
            )
    if references and not any(values.registers_meet(rems) for values in references):
        raise MeasurementMismatch("a run-time measurement register differs from the Realm's reference values")
    return "its run-time measurement registers have values that are accepted"


def owner(case: Case) -> str:
    theirs = case.evidence.realm.personalization
    accepted = case.policy.owners
    if (accepted is not None and theirs not in accepted) or case.expected_owner not in (None, theirs):
        raise OwnerMismatch("the Realm was started for another owner")
    references = _references_of(case)
    if references and not any(values.personalization in (None, theirs) for values in references):
        raise OwnerMismatch("the Realm's personalization differs from its reference values")
    if case.expected_owner is not None:
        return "it was started for the owner that is expected"
    return "it was started for an owner that is accepted" if accepted else "any owner is accepted"


def _references_of(case: Case) -> list[RealmValues]:
    """The reference values for Realms of this measurement."""
    if not case.anchors.realms:
        return []
    realm = case.evidence.realm
    identity = (realm.hash_algorithm, realm.measurement)
    return [values for values in case.anchors.realms if (values.hash_algorithm, values.measurement) == identity]


def _class(case: Case) -> str:
    stated = case.realm.domain_class
    if stated not in case.policy.classes:
        raise PolicyRefused(
            f"the class of the domain is {stated!r}, which the policy does not accept", rule="realm.classes"
        )
    return f"its class is {stated!r}"


def _cache(case: Case) -> str:
    stated, accepted = case.realm.cache_partition, case.policy.cache_partitions
    if stated not in accepted:
        demanded = " or ".join(repr(known) for known in CACHE_PARTITIONS if known in accepted)
        raise CacheShared(
            f"the Realm's cache partition is {stated!r}, and {demanded} is demanded",
            stated=stated,
            hint="use a host that divides its cache so, or demand less",
        )
    return f"its cache partition is {stated!r}"


def _key_storage(case: Case) -> str:
    stated, accepted = case.realm.key_storage, case.policy.key_storage
    if accepted is not None and stated not in accepted:
        raise PolicyRefused(
            f"the key of the Realm's memory is in {stated!r}, which the policy does not accept",
            rule="realm.key-storage",
        )
    return f"its memory is closed to other domains; the key of its encryption is in {stated!r}"


# Isolated from every other domain, and not opaque to the measured host: AR4SI calls that a warning.
_OPACITY: Final = DOUBTFUL

TABLE: Final = (
    Check(PLATFORM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, profile),
    Check(PLATFORM, Claim.HARDWARE, GOOD, BAD, _security),
    Check(PLATFORM, Claim.CONFIGURATION, GOOD, BAD, lifecycle),
    Check(REALM, Claim.CONFIGURATION, GOOD, BAD, _debug),
    Check(REALM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, replay),
    Check(REALM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, _instance),
    Check(REALM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, freshness),
    Check(PLATFORM, Claim.HARDWARE, GOOD, UNRECOGNIZED, _implementation),
    Check(PLATFORM, Claim.EXECUTABLES, APPROVED_AT_BOOT, UNRECOGNIZED_CODE, validity),
    Check(PLATFORM, Claim.EXECUTABLES, APPROVED_AT_BOOT, UNRECOGNIZED_CODE, _components),
    Check(PLATFORM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, machine),
    Check(REALM, Claim.EXECUTABLES, APPROVED_AT_BOOT, UNRECOGNIZED_CODE, measurement),
    Check(REALM, Claim.EXECUTABLES, APPROVED_AT_BOOT, UNRECOGNIZED_CODE, registers),
    Check(REALM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, owner),
    Check(REALM, Claim.CONFIGURATION, GOOD, BAD, _cache),
    Check(REALM, Claim.CONFIGURATION, GOOD, BAD, _class),
    Check(REALM, Claim.RUNTIME_OPAQUE, _OPACITY, BAD, _key_storage),
)
