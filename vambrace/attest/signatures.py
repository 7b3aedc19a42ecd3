"""The signatures of a token and what binds its halves: the same for every profile."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from vambrace.attest.suites import PublicKey
from vambrace.attest.token import UnverifiedToken
from vambrace.errors import MalformedClaim, SignatureInvalid
from vambrace.suite import BY_HASH

_HASHES: Final = {"sha-384": hashlib.sha384, "sha-512": hashlib.sha512}


def check_signatures(token: UnverifiedToken, platform_key: PublicKey) -> None:
    """Platform key → platform token → realm key → realm token.

    Who vouches for ``platform_key`` is the caller's business: a certificate, or an endorsement. Raises
    ``SignatureInvalid``, and ``MalformedEvidence`` for a realm key that is none.
    """
    token.platform_message.verify(platform_key, "platform token")
    check_realm_signature(token)


def check_realm_signature(token: UnverifiedToken) -> None:
    """The second half of ``check_signatures``, for a platform token whose signature was checked."""
    realm_key = token.profile.decode_rak(token.realm.rak)
    if token.profile.one_suite:
        _check_suite(token)
    if not hmac.compare_digest(token.platform.challenge, realm_key_digest(token)):
        raise SignatureInvalid(
            "the halves of the token do not belong together",
            hint="the platform vouches for another Realm key",
        )
    token.realm_message.verify(realm_key, "realm token")


def _check_suite(token: UnverifiedToken) -> None:
    """What the halves are signed with, and the hashes that the realm half names."""
    suite, realm = token.platform_message.algorithm.suite, token.realm
    named = (BY_HASH.get(name, suite) for name in (realm.hash_algorithm, realm.rak_hash_algorithm))
    if any(other is not suite for other in (token.realm_message.algorithm.suite, *named)):
        raise SignatureInvalid("what the token is signed with and what it names are of different suites")


def realm_key_digest(token: UnverifiedToken) -> bytes:
    """What the platform half must say of the realm half: the hash of its key, as it stands in the claim."""
    name = token.realm.rak_hash_algorithm
    if suite := BY_HASH.get(name):
        return suite.digest(token.realm.rak)
    if name not in _HASHES:
        raise MalformedClaim(f"the realm token binds its key with a hash that is not known: {name}", half="realm token")
    return _HASHES[name](token.realm.rak).digest()
