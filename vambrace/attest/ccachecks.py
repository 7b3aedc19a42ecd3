"""The checks of the verifier for tokens of Arm CCA (draft-ffm-rats-cca-token, draft-ydb-rats-cca-endorsements)."""

from __future__ import annotations

from typing import Final

from vambrace.attest import checks
from vambrace.attest.ccavalues import PlatformValues
from vambrace.attest.checks import Case, Check, Concession
from vambrace.attest.claims import CACHE_PARTITIONS, UnverifiedCcaRealm
from vambrace.attest.policy import lifecycle_name
from vambrace.attest.trustworthiness import (
    APPROVED_AT_BOOT,
    BAD,
    GOOD,
    PLATFORM,
    REALM,
    UNRECOGNIZED,
    UNRECOGNIZED_CODE,
    Claim,
)
from vambrace.errors import CacheShared, ChallengeMismatch, ComponentChanged, InsecurePlatform, PolicyRefused


def _lifecycle(case: Case) -> str:
    """The lower byte of a state is the implementation's (draft-ffm-rats-cca-token, 4.5.1)."""
    state = case.evidence.platform.lifecycle & 0xFF00
    name = lifecycle_name(state)
    if not case.policy.accepts_lifecycle(state):
        raise InsecurePlatform(f"the platform's life cycle is {name}", hint="only a secured one protects its Realms")
    return f"its life cycle is {name}" if name == "secured" else Concession(f"its life cycle is {name}")


def _no_instance(case: Case) -> str:
    if case.instance is not None:
        raise ChallengeMismatch("the token names no instance, as one of ours would")
    return "a Realm of Arm CCA has no instance identity"


def _implementation(case: Case) -> str:
    if not _references(case):
        raise ComponentChanged(
            "there are no reference values for this implementation",
            component="implementation",
            hint="get the CoRIM of the platform's vendor",
        )
    return "its implementation is one that its vendor has published reference values for"


def _components(case: Case) -> str:
    differences = [values.difference(case.evidence.platform.components) for values in _references(case)]
    if not differences:
        raise ComponentChanged("the platform's components have no reference values", component="implementation")
    if None not in differences:
        raise next(difference for difference in differences if difference)
    return f"all {len(case.evidence.platform.components)} components have their reference values"


def _config(case: Case) -> str:
    references = _references(case)
    if not any(values.configured(case.evidence.platform.config) for values in references):
        raise ComponentChanged(
            "the platform is configured in another way than its reference values say", component="config"
        )
    if all(values.config is None for values in references):
        return "its reference values demand no configuration"
    return "it is configured as its reference values say"


def _references(case: Case) -> list[PlatformValues]:
    theirs = case.evidence.platform.implementation_id
    return [values for values in case.anchors.cca_platforms if values.implementation_id == theirs]


def _extensions(case: Case) -> str:
    count = len(case.evidence.platform.extensions)
    if not count:
        return "no device was added to it while it ran"
    if not case.policy.allow_extensions:
        raise PolicyRefused(
            f"{count} devices were added to the platform, and nothing says what they should be",
            rule="platform.extensions",
        )
    return Concession(f"{count} devices were added to it, and the policy allows that")


def _demands(case: Case) -> str:
    """What a policy may demand and no token of CCA can state."""
    policy = case.policy
    if "realm" not in policy.classes:
        raise PolicyRefused("the domain is a Realm, which the policy does not accept", rule="realm.classes")
    if not policy.cache_partitions >= set(CACHE_PARTITIONS):
        raise CacheShared("the token does not say how the cache is divided, and that is demanded", stated="")
    if policy.key_storage is not None:
        raise PolicyRefused(
            "the token does not say where the key of the Realm's memory is, and that is demanded",
            rule="realm.key-storage",
        )
    return "nothing is demanded that its token cannot state"


def _opacity(case: Case) -> str:
    realm = case.evidence.realm
    private = isinstance(realm, UnverifiedCcaRealm) and realm.private_mec
    own = ", with a key of its own" if private else ""
    return f"its memory is encrypted and closed to the host by the hardware{own}"


TABLE: Final = (
    Check(PLATFORM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, checks.profile),
    Check(PLATFORM, Claim.CONFIGURATION, GOOD, BAD, _lifecycle),
    Check(REALM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, checks.replay),
    Check(REALM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, _no_instance),
    Check(REALM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, checks.freshness),
    Check(PLATFORM, Claim.HARDWARE, GOOD, UNRECOGNIZED, _implementation),
    Check(PLATFORM, Claim.EXECUTABLES, APPROVED_AT_BOOT, UNRECOGNIZED_CODE, checks.validity),
    Check(PLATFORM, Claim.EXECUTABLES, APPROVED_AT_BOOT, UNRECOGNIZED_CODE, _components),
    Check(PLATFORM, Claim.CONFIGURATION, GOOD, BAD, _config),
    Check(PLATFORM, Claim.HARDWARE, GOOD, UNRECOGNIZED, _extensions),
    Check(PLATFORM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, checks.machine),
    Check(REALM, Claim.EXECUTABLES, APPROVED_AT_BOOT, UNRECOGNIZED_CODE, checks.measurement),
    Check(REALM, Claim.EXECUTABLES, APPROVED_AT_BOOT, UNRECOGNIZED_CODE, checks.registers),
    Check(REALM, Claim.INSTANCE_IDENTITY, GOOD, UNRECOGNIZED, checks.owner),
    Check(REALM, Claim.CONFIGURATION, GOOD, BAD, _demands),
    Check(REALM, Claim.RUNTIME_OPAQUE, GOOD, BAD, _opacity),
)
