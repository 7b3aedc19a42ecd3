"""Secrets from the broker (docs/broker.md): the KBS protocol in TLS 1.3 that ends at the broker whose certificate is in
the measured configuration. The monitor carries bytes that it cannot read."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import time
from collections.abc import Callable

from vambrace_agent import AgentError
from vambrace_agent.jwe import open_envelope, public_jwk, thumbprint
from vambrace_agent.libcrypto import ExchangeKey

VERSION = "0.4.0"
TEE = "cca"  # the form of the evidence; whose it is stands in it
CHALLENGE_LABEL = b"vambrace-release-1"
NONCE_BYTES = 32
MAX_ANSWER = 256 << 10
SECONDS = 60.0
#: Of a session; the broker's own is 300 unless its settings say less.
SESSION_SECONDS = 120.0
_X509_V_FLAG_NO_CHECK_TIME = 0x200000

Dial = Callable[[], socket.socket]
Attest = Callable[[bytes], bytes]


class Refused(AgentError):
    """The broker said no; ``status`` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Broker:
    """``url`` and ``certificate`` (PEM) are the measured ones; ``dial`` opens a stream there, ``attest`` gives a token
    over a challenge of 64 bytes, ``instance`` is this Realm's."""

    def __init__(self, url: str, certificate: str, dial: Dial, attest: Attest, instance: bytes) -> None:
        self.name, self.port = split_url(url)
        self._dial = dial
        self._attest = attest
        self._instance = instance
        self._context = make_context(certificate)

    def session(self) -> Session:
        """Prove what this Realm is. Raises ``Refused``, ``AgentError``: no connection, or not this broker."""
        try:
            stream = self._dial()
        except OSError:
            raise AgentError("the broker cannot be reached") from None
        try:
            stream.settimeout(SECONDS)
            tls = self._context.wrap_socket(stream, server_hostname=self.name)
        except (OSError, ValueError):
            stream.close()
            raise AgentError("the broker is not the one of the measured configuration, or cannot be reached") from None
        session = Session(tls, self.name, self.port)
        try:
            session.prove(self._attest, self._instance)
        except BaseException:
            session.close()
            raise
        return session


class Session:
    """One connection to the broker, and a key for what it sends. A context manager."""

    def __init__(self, tls: ssl.SSLSocket, name: str, port: int) -> None:
        import http.client  # takes its time, and not every Realm has a broker

        self._failures = (OSError, http.client.HTTPException)
        self._connection = http.client.HTTPConnection(name, port, timeout=SECONDS)
        self._connection.sock = tls
        self._key = ExchangeKey()
        self._cookie = ""
        self._ends = time.monotonic() + SESSION_SECONDS

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        return time.monotonic() > self._ends

    def close(self) -> None:
        self._connection.close()
        self._key.close()

    def prove(self, attest: Attest, instance: bytes) -> None:
        answer = self._ask("POST", "/kbs/v0/auth", {"version": VERSION, "tee": TEE, "extra-params": ""})
        try:
            nonce = base64.b64decode(str(answer.get("nonce")), validate=True)
        except ValueError:
            nonce = b""
        if len(nonce) != NONCE_BYTES:
            raise AgentError("the broker gave no challenge")
        jwk = public_jwk(self._key)
        token = attest(hashlib.sha512(CHALLENGE_LABEL + nonce + thumbprint(jwk) + instance).digest())
        evidence = {"primary_evidence": {"token": base64.b64encode(token).decode()}, "additional_evidence": "{}"}
        runtime = {"nonce": answer["nonce"], "tee-pubkey": jwk}
        self._ask("POST", "/kbs/v0/attest", {"runtime-data": runtime, "tee-evidence": evidence})

    def resource(self, name: str) -> tuple[int, bytes]:
        """The generation and the value of ``name`` (repository/type/tag). Raises ``Refused``, ``AgentError``."""
        header, value = open_envelope(self._ask("GET", f"/kbs/v0/resource/{name}"), self._key)
        generation = header.get("generation")
        if header.get("resource") != name or type(generation) is not int:
            raise AgentError("the broker gave another secret than was asked for")
        return generation, value

    def volume(self, name: str) -> Volume:
        """The key of a volume, and which state of it is the last one."""
        generation, content = self.resource(name)
        return Volume(self, name, generation, content)

    def commit(self, name: str, generation: int, state: bytes, ticket: bytes) -> None:
        """See ``Volume.commit``."""
        repository, _, tag = name.split("/")
        coded = {"state": base64.b64encode(state).decode(), "ticket": base64.b64encode(ticket).decode()}
        answer = self._ask("POST", f"/v1/volumes/{repository}/{tag}/commit", {"generation": generation, **coded})
        if answer.get("generation") != generation:
            raise AgentError("the broker confirmed another generation")

    def _ask(self, method: str, path: str, body: dict[str, object] | None = None) -> dict[str, object]:
        headers = {"Cookie": self._cookie} if self._cookie else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            response = self._connection.getresponse()
            data = response.read(MAX_ANSWER + 1)
            cookie = response.getheader("Set-Cookie")
        except self._failures:
            raise AgentError("the broker does not answer") from None
        try:
            answer = json.loads(data) if len(data) <= MAX_ANSWER else None
        except (ValueError, RecursionError):
            answer = None
        if response.status != 200:
            said = answer.get("detail") if isinstance(answer, dict) else None
            raise Refused(f"the broker refuses: {str(said or response.status)[:200]}", response.status)
        if not isinstance(answer, dict):
            raise AgentError("the broker's answer is not understood")
        if cookie:
            self._cookie = cookie.split(";", 1)[0]
        return answer


class Volume:
    """A volume's key (32 bytes), the generation that was committed last, and its ``state`` as its Realm said then.

    Generation 0 is a volume that nothing was ever written to.
    """

    def __init__(self, session: Session, name: str, generation: int, content: bytes) -> None:
        self._session = session
        self.name = name
        self.generation = generation
        try:
            fields = json.loads(content)
            said = fields["generation"]
            self.key, self.state, self._ticket = (
                base64.b64decode(fields[name], validate=True) for name in ("key", "state", "ticket")
            )
        except (ValueError, KeyError, TypeError):
            raise AgentError("the broker gave no volume's key") from None
        if said != generation:
            raise AgentError("the broker gave two generations of a volume")

    def admits(self, generation: int, state: bytes) -> bool:
        """Whether a volume on which this is written is in its last state, and not an old copy or another one."""
        return (generation, state) == (self.generation, self.state)

    def commit(self, state: bytes) -> None:
        """Make the next generation, which is on the volume already beside the last one, the one that counts.

        When this returns the broker has it on its disk. Raises ``Refused`` (409: somebody else has committed
        meanwhile, and this Realm must not write on) and ``AgentError``: then ask again, with a new session, which of
        the two it is.
        """
        self._session.commit(self.name, self.generation + 1, state, self._ticket)
        self.generation += 1
        self.state = state


def split_url(url: str) -> tuple[str, int]:
    """Name and port of ``https://name:port``, which the image builder has checked."""
    place = url.removeprefix("https://")
    name, _, port = place.rpartition(":")
    return name.strip("[]"), int(port)


def make_context(certificate: str) -> ssl.SSLContext:
    """TLS 1.3 to whoever has the key of ``certificate`` or is certified by it. Dates are not looked at: a Realm
    has no clock until its owner is there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | _X509_V_FLAG_NO_CHECK_TIME)
    context.load_verify_locations(cadata=certificate)
    return context
