"""Every error that vambrace raises, as one tree.

    VambraceError
    ├── UsageError                  a command or call that makes no sense as given
    ├── ConfigError                 a manifest, configuration or setting is wrong
    ├── ImageError                  a bundle or one of its parts is broken
    ├── BuildError                  a build step failed (ToolMissing: a program is not installed; NoSpace: the disk
    │                               of what is built is full)
    ├── ServerError                 the emulated server cannot be started, reached or stopped
    │   └── BootRefused             its firmware refuses a component
    ├── HostError                   the host refused or failed
    │   ├── HostUnreachable         no connection, or not the host that was expected
    │   ├── NotFound                no such domain or image
    │   ├── Conflict                not possible in the present state
    │   └── CapacityError           the exclusive share cannot be given
    ├── DomainError                 a domain failed or its agent refused
    │   ├── ChannelClosed           the connection to the agent ended
    │   └── AgentFlood              the agent sent more than may wait
    ├── VerificationError           evidence is not to be trusted
    │   ├── MalformedEvidence       not a well-formed token
    │   │   ├── MalformedCbor       not CBOR in the encoding that is accepted, or beyond its bounds
    │   │   ├── MalformedEnvelope   not the collection, signed message or key that it should be
    │   │   ├── UnknownProfile      a token of a profile that is not accepted here
    │   │   └── MalformedClaim      a claim is missing, unknown, or has no value that it may have
    │   ├── SignatureInvalid        a signature does not verify
    │   ├── ChallengeMismatch       another nonce, another connection's channel
    │   │   ├── ReplayedToken       a token that the user has seen before
    │   │   └── AnotherRealm        another Realm's token, of the same image even
    │   ├── UnknownRoot             the endorsement does not lead to the given root
    │   ├── CertificateExpired      an endorsement is out of its validity
    │   ├── CertificateRevoked      the vendor has revoked an endorsement
    │   ├── RevocationUnknown       no fresh revocation list, and the policy asks for one
    │   ├── InsecurePlatform        the platform states that it is insecure, in debug or not provisioned
    │   ├── ComponentChanged        firmware or host component differs from the reference values
    │   ├── MeasurementMismatch     another image or configuration
    │   ├── OwnerMismatch           another owner's key
    │   ├── CacheShared             the cache is not divided as it is demanded
    │   ├── PolicyRefused           something else that the policy does not accept
    │   └── EventsMismatch          a log of events is not what the measurement registers say
    ├── BrokerError                 the broker failed, cannot be reached, or refused
    │   └── NotReleased             the broker did not hand out a secret
    ├── MessageRefused              an owner's message is forged, replayed, late or for another instance
    ├── RegistryError               a registry cannot be reached, refused, or sent something else than it stated
    ├── PagerError                  the encrypted window failed
    │   └── PageAuthenticationError a page's ciphertext was changed
    ├── PartitionError              something cannot be partitioned, or is not partitioned as it should be
    ├── KvmError                    a KVM call failed
    └── TrustZoneError              TrustZone is absent, or refused
"""

from __future__ import annotations

from typing import ClassVar


class VambraceError(Exception):
    """Root of the tree. ``message`` is one line; ``hint`` says what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(VambraceError):
    exit_code = 2


class ConfigError(VambraceError):
    """``line`` is the line of the manifest, counted from 1, where it is known."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str | None = None, line: int | None = None) -> None:
        super().__init__(f"line {line}: {message}" if line else message, hint=hint)
        self.line = line


class ImageError(VambraceError):
    exit_code = 3


class BuildError(VambraceError):
    exit_code = 6


class ToolMissing(BuildError):
    """``tool`` is the program that was looked for."""

    def __init__(self, tool: str, *, hint: str | None = None) -> None:
        super().__init__(f"{tool} is not installed", hint=hint or "run 'make packages'")
        self.tool = tool


class NoSpace(BuildError):
    """``place`` is the folder whose disk is full."""

    def __init__(self, place: str, what: str, *, hint: str | None = None) -> None:
        super().__init__(f"no space left in {place} for {what}", hint=hint or "free some space there")
        self.place = place


class ServerError(VambraceError):
    exit_code = 7


class BootRefused(ServerError):
    """``component`` names what is not started, as a token would."""

    def __init__(self, message: str, *, component: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.component = component


class HostError(VambraceError):
    """``status`` is the HTTP status, 0 where there was no answer."""

    exit_code = 5

    def __init__(self, message: str, *, hint: str | None = None, status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class HostUnreachable(HostError):
    pass


class NotFound(HostError):
    pass


class Conflict(HostError):
    pass


class CapacityError(HostError):
    pass


class DomainError(VambraceError):
    exit_code = 8


class ChannelClosed(DomainError):
    """The connection ended; a new one may work, if the Realm still runs."""


class AgentFlood(DomainError):
    """The guest sent more than may wait."""


class VerificationError(VambraceError):
    exit_code = 4


class MalformedEvidence(VerificationError):
    pass


class MalformedCbor(MalformedEvidence):
    pass


class MalformedEnvelope(MalformedEvidence):
    pass


class UnknownProfile(MalformedEvidence):
    """``profiles`` are the names that the platform and the realm token give; None where one gives none."""

    def __init__(self, message: str, *, profiles: tuple[str | None, str | None], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.profiles = profiles


class MalformedClaim(MalformedEvidence):
    """``claim`` is the claim's key, where it is of one claim; ``half`` says of what it is a claim."""

    def __init__(self, message: str, *, half: str, claim: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.half = half
        self.claim = claim


class SignatureInvalid(VerificationError):
    pass


class ChallengeMismatch(VerificationError):
    pass


class ReplayedToken(ChallengeMismatch):
    pass


class AnotherRealm(ChallengeMismatch):
    """``instance`` is the one that the token names."""

    def __init__(self, message: str, *, instance: bytes, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.instance = instance


class UnknownRoot(VerificationError):
    pass


class CertificateExpired(VerificationError):
    pass


class CertificateRevoked(VerificationError):
    pass


class RevocationUnknown(VerificationError):
    pass


class InsecurePlatform(VerificationError):
    pass


class ComponentChanged(VerificationError):
    """``component`` names what differs."""

    def __init__(self, message: str, *, component: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.component = component


class MeasurementMismatch(VerificationError):
    pass


class OwnerMismatch(VerificationError):
    pass


class CacheShared(VerificationError):
    """``stated`` is what the token says of the cache's partition."""

    def __init__(self, message: str, *, stated: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.stated = stated


class PolicyRefused(VerificationError):
    """``rule`` is the key of the policy."""

    def __init__(self, message: str, *, rule: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.rule = rule


class EventsMismatch(VerificationError):
    pass


class MessageRefused(VambraceError):
    exit_code = 4


class BrokerError(VambraceError):
    """``status`` is the HTTP status, 0 where there was no answer."""

    exit_code = 10

    def __init__(self, message: str, *, hint: str | None = None, status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class NotReleased(BrokerError):
    pass


class RegistryError(VambraceError):
    exit_code = 11


class PagerError(VambraceError):
    exit_code = 9


class PageAuthenticationError(PagerError):
    """``zone`` and ``page`` (index within the zone) of the page that failed."""

    def __init__(self, zone: int, page: int) -> None:
        super().__init__(f"page {page} of zone {zone} failed authentication")
        self.zone = zone
        self.page = page


class PartitionError(VambraceError):
    exit_code = 9


class KvmError(VambraceError):
    exit_code = 9


class TrustZoneError(VambraceError):
    exit_code = 9
