"""What the user trusts: the vendor's root, the published reference values, and a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from vambrace.attest import chain, references
from vambrace.attest.claims import INSECURE_COMPONENT
from vambrace.attest.policy import CACHE_DEMANDS, Policy
from vambrace.attest.references import ReferenceValues
from vambrace.attest.revocation import Revocation, RevocationList, load_list
from vambrace.attest.verify import VerifiedRealm, verify_channel, verify_launch
from vambrace.client.context import Context
from vambrace.errors import ConfigError


@dataclass(frozen=True)
class Expected:
    """What the user expects: the launch measurement and the owner's personalization (64 bytes); ``cache_required``: the
    measured configuration demands a part of the cache."""

    measurement: bytes
    personalization: bytes
    hash_algorithm: str = "sha-256"
    cache_required: bool = False


@dataclass(frozen=True)
class Trust:
    """``launch`` and ``channel`` raise a subclass of ``VerificationError`` for each way of being wrong."""

    roots: tuple[x509.Certificate, ...]
    references: ReferenceValues
    policy: Policy
    revocation_lists: tuple[RevocationList, ...] = ()

    @classmethod
    def load(
        cls,
        root: Path | str,
        values: Path | str,
        policy: Policy | None = None,
        revocation_list: Path | str | None = None,
    ) -> Trust:
        """Read the vendor's root (PEM), the reference values (signed CoRIM) and its revocation list, and check them."""
        policy = policy or Policy()
        roots = chain.load_roots(_read(root, "vendor root"))
        lists = (load_list(_read(revocation_list, "revocation list")),) if revocation_list else ()
        revocation = Revocation(lists, policy.require_revocation, policy.revocation_age)
        checked = references.load(_read(values, "reference values"), roots, revocation=revocation)
        return cls(tuple(roots), checked, policy, lists)

    @classmethod
    def current(cls, name: str | None = None, context: Context | None = None, policy: Policy | None = None) -> Trust:
        """What ``hosts.toml`` names for the host called ``name``, or for the current one."""
        name, entry = (context or Context()).host(name)
        if policy and policy.allow_insecure and not Path(entry.references).is_file():
            # Without measured boot the token has but one component, which says so.
            roots = chain.load_roots(_read(entry.vendor_root, "vendor root"))
            nothing = ReferenceValues((INSECURE_COMPONENT,))
            return cls(tuple(roots), nothing, policy)
        if not (entry.vendor_root and entry.references):
            raise ConfigError(f"host {name} has no vendor root or reference values", hint="add them in hosts.toml")
        return cls.load(entry.vendor_root, entry.references, policy, entry.revocation_list)

    def launch(
        self, token: bytes, nonce: bytes, expected: Expected, *, seen: Container[bytes] = ()
    ) -> VerifiedRealm:
        """Verify the token issued before the first instruction; ``seen``: SHA-256 of those of other starts."""
        return verify_launch(
            token,
            nonce=nonce,
            roots=self.roots,
            references=self.references,
            measurement=expected.measurement,
            personalization=expected.personalization,
            policy=self._policy(expected),
            revocation_lists=self.revocation_lists,
            seen=seen,
        )

    def channel(self, token: bytes, nonce: bytes, spki: bytes, instance: bytes, expected: Expected) -> VerifiedRealm:
        """Verify the token of a TLS session whose server showed the key ``spki``."""
        return verify_channel(
            token,
            nonce=nonce,
            spki=spki,
            instance=instance,
            roots=self.roots,
            references=self.references,
            measurement=expected.measurement,
            personalization=expected.personalization,
            policy=self._policy(expected),
            revocation_lists=self.revocation_lists,
        )

    def _policy(self, expected: Expected) -> Policy:
        policy = dataclasses.replace(self.policy, hash_algorithm=expected.hash_algorithm)
        if not expected.cache_required:
            return policy
        return dataclasses.replace(policy, cache_partitions=policy.cache_partitions & CACHE_DEMANDS["divided"])


def _read(path: Path | str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the {what} cannot be read: {path}: {error.strerror}",
            hint="check the path; the vendor publishes it",
        ) from error
