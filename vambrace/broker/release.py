"""Every decision of the broker. Each is made and written into the audit log in one transaction.

A secret leaves only if, at that moment, the evidence of the session satisfies the policy that is bound to it: the
policy, the vendor's reference values and the dates of certificates may have changed since the session began.

A volume's key comes with the generation that its Realm committed last and what the Realm said of the volume then
(``state``). The Realm opens a volume only if it finds exactly that on it; it writes the next generation beside the last
one, commits, and writes data when the commit is confirmed. So whatever is cut off, one of the two is what the broker
says, and a copy from before is not. ``docs/broker.md`` has it step by step.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from vambrace.attest.appraisal import Appraisal
from vambrace.attest.challenge import release_challenge
from vambrace.attest.token import decode_evidence
from vambrace.attest.verify import accepted
from vambrace.broker.audit import DONE, GRANTED, REFUSED, Entry, Event, Head
from vambrace.broker.envelope import TeeKey, encrypt
from vambrace.broker.names import ResourceName
from vambrace.broker.platforms import Platforms
from vambrace.broker.policy import ReleasePolicy, appraise_platform
from vambrace.broker.refusals import Refusals
from vambrace.broker.results import ResultSigner
from vambrace.broker.sessions import Attested, Session, Sessions
from vambrace.broker.store import Secret, Store, Transaction
from vambrace.canonical import canonical
from vambrace.errors import ConfigError, Conflict, MalformedEvidence, NotFound, NotReleased, UsageError, VambraceError
from vambrace.serving.doors import client_of

VOLUME_KEY_BYTES: Final = 32
MAX_VALUE: Final = 64 << 10
MAX_STATE: Final = 256
VOLUME_CONTENT: Final = "application/vnd.vambrace.volume.v1+json"
#: What a Realm is told that is not to have a secret: the audit log says more, to the secret's owner.
_NOT_YOURS: Final = "the secret is not for this Realm, or there is none"


@dataclass(frozen=True)
class Caller:
    """Who asks, for the audit log: the certificate of an administrator (SHA-256, hex) or a network address."""

    administrator: str = ""
    address: str = ""

    def subject(self) -> dict[str, str]:
        named = {"administrator": self.administrator, "address": self.address}
        return {key: value for key, value in named.items() if value}


class Broker:
    """Decides. All methods raise ``BrokerError`` where the database fails; then nothing has happened."""

    def __init__(
        self,
        store: Store,
        platforms: Platforms,
        sessions: Sessions,
        results: ResultSigner,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.sessions = sessions
        self._store = store
        self._platforms = platforms
        self._results = results
        self._refusals = Refusals()
        self._clock = clock

    # For everybody

    async def refuse(self, what: str, error: NotReleased, caller: Caller) -> None:
        """Write that ``error`` refuses somebody before there is anything to decide."""
        reason = self._refusals.entry(client_of(caller.address), error.message)
        if reason is not None:
            event = Event(what, REFUSED, reason=reason, subject=caller.subject())
            await self._store.transact(lambda log: log.append(event))

    # For Realms

    async def session(self, identifier: str, connection: object, caller: Caller) -> Session:
        """The session of that name, if this connection has it. Raises ``NotReleased`` (401)."""
        try:
            return self.sessions.find(identifier, connection)
        except NotReleased as error:
            await self.refuse("session", error, caller)
            raise

    async def attest(self, session: Session, jwk: Any, evidence: bytes, caller: Caller) -> str:
        """Take the answer to the session's challenge, once; returns an attestation result (JWT).

        Raises ``NotReleased`` (401) with the reason.
        """
        try:
            nonce = self.sessions.take_nonce(session)
        except NotReleased as error:
            await self.refuse("attest", error, caller)
            raise

        def decide(transaction: Transaction) -> tuple[Appraisal, Attested] | str:
            subject = caller.subject()
            try:
                key = TeeKey.parse(jwk)
                instance = decode_evidence(evidence).realm.instance
                subject["instance"] = instance.hex()
                challenge = release_challenge(nonce, key.thumbprint(), instance)
                appraisal = self._genuine(evidence, challenge)
            except VambraceError as error:
                refusal = Event("attest", REFUSED, reason=error.message, subject=subject)
                self._refused(transaction, client_of(caller.address), refusal)
                return error.message
            subject |= _described(appraisal)
            transaction.append(Event("attest", GRANTED, subject=subject))
            return appraisal, Attested(evidence, challenge, key, subject)

        decision = await self._store.transact(decide)
        if isinstance(decision, str):
            raise NotReleased(decision, hint="the broker's audit log has the details", status=401)
        appraisal, attested = decision
        self.sessions.settle(session, attested)
        return self._results.sign(appraisal, attested.key)

    async def release(self, session: Session, name: ResourceName) -> str:
        """The secret as a JWE for the session's key. Raises ``NotReleased``: 401 without evidence, 403 where the
        policy refuses it or there is no such secret, which a Realm cannot tell apart."""
        attested = _attested(session)

        def decide(transaction: Transaction) -> str | None:
            secret = self._admitted(transaction, name, attested, "release")
            if secret is None:
                return None
            header: dict[str, str | int] = {"resource": str(name), "generation": secret.generation}
            content = secret.value
            if name.is_volume:
                header["cty"] = VOLUME_CONTENT
                content = _volume_content(secret, session.ticket(str(name)))
            envelope = encrypt(content, attested.key, header)
            transaction.append(
                Event("release", GRANTED, str(name), secret.generation, subject=attested.subject)
            )
            return envelope

        envelope = await self._store.transact(decide)
        if envelope is None:
            raise NotReleased(_NOT_YOURS, hint="the broker's audit log has the reason", status=403)
        return envelope

    async def commit(self, session: Session, name: ResourceName, generation: int, state: bytes, ticket: bytes) -> int:
        """The Realm that has the volume's key makes ``generation`` the volume's, with ``state`` (up to 256 bytes).

        It must be the one after the last; the last one once more, with the same state, is confirmed again. Raises
        ``NotReleased`` as ``release``, ``Conflict`` where another generation is the volume's, ``UsageError``.
        """
        attested = _attested(session)
        if not name.is_volume or generation < 1 or len(state) > MAX_STATE:
            raise UsageError("this cannot be committed", hint=f"a volume, its next generation, {MAX_STATE} bytes")
        released_to = bool(ticket) and hmac.compare_digest(ticket, session.tickets.get(str(name), b""))

        def decide(transaction: Transaction) -> str | None:
            if not released_to:
                reason = "the commit is not of whom the key was released to"
                self._refused_to(transaction, attested, Event("commit", REFUSED, str(name), 0, reason))
                return _NOT_YOURS
            secret = self._admitted(transaction, name, attested, "commit")
            if secret is None:
                return _NOT_YOURS
            if (generation, state) == (secret.generation, secret.state):
                return None
            if generation != secret.generation + 1:
                reason = f"generation {generation} does not follow {secret.generation}"
                event = Event("commit", REFUSED, str(name), secret.generation, reason)
                self._refused_to(transaction, attested, event)
                return reason
            row = transaction.put(Secret(name, generation, secret.policy, secret.value, state))
            transaction.append(Event("commit", GRANTED, str(name), generation, "", row, attested.subject))
            return None

        refusal = await self._store.transact(decide)
        if refusal == _NOT_YOURS:
            raise NotReleased(refusal, hint="the broker's audit log has the reason", status=403)
        if refusal is not None:
            raise Conflict(refusal, hint="somebody else has the volume, or its state is old", status=409)
        return generation

    def _genuine(self, evidence: bytes, challenge: bytes) -> Appraisal:
        """Raises ``VerificationError``, of the first platform where all refuse; ``ConfigError``: there is none."""
        first: VambraceError | None = None
        for platform in self._platforms:
            try:
                return appraise_platform(evidence, challenge, platform, self._clock())
            except VambraceError as error:
                first = first or error
        raise first or ConfigError("this broker knows no platform", hint="see [platforms] in its settings")

    def _admitted(self, transaction: Transaction, name: ResourceName, attested: Attested, what: str) -> Secret | None:
        """The secret, if its policy admits the Realm now; else the refusal is in the log."""
        secret = transaction.get(name)
        generation = secret.generation if secret else 0
        try:
            if secret is None:
                raise NotFound("there is no such secret")
            secret.policy.admit(attested.evidence, attested.challenge, self._platforms, self._clock())
        except VambraceError as error:
            self._refused_to(transaction, attested, Event(what, REFUSED, str(name), generation, error.message))
            return None
        return secret

    def _refused_to(self, transaction: Transaction, attested: Attested, event: Event) -> None:
        who = attested.subject["instance"]
        self._refused(transaction, who, replace(event, subject=attested.subject))

    def _refused(self, transaction: Transaction, who: str, event: Event) -> None:
        """Write a refusal, or count it for the next one of whom it is about."""
        reason = self._refusals.entry(who, event.reason)
        if reason is not None:
            transaction.append(replace(event, reason=reason))

    # For the owners of repositories

    async def put(self, name: ResourceName, value: bytes | None, policy: ReleasePolicy | None, caller: Caller) -> int:
        """Store a secret, its policy, or both; the generation from now on. What is None stays as it is, and the key
        of a new volume is made here.

        Raises ``NotFound`` (nothing is there whose other part could stay), ``UsageError`` (a volume's key is not
        replaced: what it encrypts would be lost).
        """
        if value is not None and not 1 <= len(value) <= MAX_VALUE:
            raise UsageError(f"a secret has 1 to {MAX_VALUE >> 10} KiB", hint="keep the data elsewhere, and a key here")
        if policy is not None:
            self._platforms.get(policy.platform, insecure=policy.policy.allow_insecure)

        def work(transaction: Transaction) -> int:
            secret = _changed(transaction, name, value, policy)
            what = "policy" if value is None and transaction.get(name) else "put"
            row = transaction.put(secret)
            transaction.append(Event(what, DONE, str(name), secret.generation, row=row, subject=caller.subject()))
            return secret.generation

        return await self._store.transact(work)

    async def delete(self, name: ResourceName, caller: Caller) -> None:
        """Forget a secret; its generations are not used again. Raises ``NotFound``."""

        def work(transaction: Transaction) -> None:
            secret = transaction.get(name)
            if secret is None:
                raise _unknown(name)
            row = transaction.delete(name)
            transaction.append(Event("delete", DONE, str(name), secret.generation, row=row, subject=caller.subject()))

        await self._store.transact(work)

    async def describe(self, name: ResourceName) -> dict[str, Any]:
        """All but the value. Raises ``NotFound``."""
        secret = await self._store.transact(lambda transaction: transaction.get(name))
        if secret is None:
            raise _unknown(name)
        return _description(secret)

    async def entries(self, repository: str, after: int, limit: int) -> tuple[list[Entry], Head]:
        """Of the log what is about a repository, after entry ``after``, and where all of it ends."""
        return await self._store.transact(lambda log: (log.entries(repository, after, limit), log.head))

    async def secrets(self, repository: str) -> list[dict[str, Any]]:
        return [_description(each) for each in await self._store.transact(lambda found: found.all(repository))]


def _unknown(name: ResourceName) -> NotFound:
    return NotFound(f"there is no {name}", hint=f"'vambrace secret list {name.repository}' shows what there is")


def _attested(session: Session) -> Attested:
    if session.attested is None:
        raise NotReleased("there is no evidence yet", hint="answer the challenge with POST /kbs/v0/attest", status=401)
    return session.attested


def _changed(
    transaction: Transaction, name: ResourceName, value: bytes | None, policy: ReleasePolicy | None
) -> Secret:
    there = transaction.get(name)
    if there is None:
        if policy is None:
            raise NotFound(f"there is no {name}", hint="a new secret needs a policy: --bundle, or --policy")
        if value is None:
            if not name.is_volume:
                raise NotFound(f"there is no {name}", hint="a new secret needs a value; a volume's key is made here")
            value = os.urandom(VOLUME_KEY_BYTES)
        elif name.is_volume and len(value) != VOLUME_KEY_BYTES:
            raise UsageError(f"a volume's key has {VOLUME_KEY_BYTES} bytes", hint="leave it out: it is made here")
        return Secret(name, transaction.last_generation(name) + (0 if name.is_volume else 1), policy, value)
    if value is not None and name.is_volume:
        raise UsageError("a volume's key is not replaced", hint="delete the volume, with all that it holds, first")
    generation = there.generation + (value is not None)
    return Secret(name, generation, policy or there.policy, there.value if value is None else value, there.state)


def _volume_content(secret: Secret, ticket: bytes) -> bytes:
    return canonical(
        {
            "key": base64.b64encode(secret.value).decode(),
            "generation": secret.generation,
            "state": base64.b64encode(secret.state).decode(),
            "ticket": base64.b64encode(ticket).decode(),
        }
    )


def _described(appraisal: Appraisal) -> dict[str, str]:
    realm = accepted(appraisal)
    return {
        "instance": realm.instance.hex(),
        "measurement": realm.measurement.hex(),
        "platform": realm.platform_instance_id.hex(),
        "owner": realm.personalization.hex(),
    }


def _description(secret: Secret) -> dict[str, Any]:
    return {"resource": str(secret.name), "generation": secret.generation, **secret.policy.as_dict()}


def read_evidence(value: Any) -> bytes:
    """The token in a KBS ``tee-evidence``, alone or as primary evidence. Raises ``MalformedEvidence``."""
    if isinstance(value, Mapping) and "primary_evidence" in value:
        value = value["primary_evidence"]
    token = value.get("token") if isinstance(value, Mapping) else None
    if not isinstance(token, str):
        raise MalformedEvidence("tee-evidence has no token", hint='{"token": base64}')
    try:
        return base64.b64decode(token, validate=True)
    except ValueError:
        raise MalformedEvidence("the token in tee-evidence is not base64") from None
