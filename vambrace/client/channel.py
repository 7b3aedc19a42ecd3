"""The attested channel (docs/architecture.md, section 7): TLS 1.3 to the agent, through a WebSocket of the host's.

The host carries opaque bytes. The agent's certificate is checked by no CA: a token made for this very session
binds its key to the verified Realm, and until it is verified nothing but ``attest`` is sent.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.exceptions import ConnectionClosed, WebSocketException

from vambrace.attest.chain import UNREADABLE
from vambrace.attest.verify import VerifiedRealm
from vambrace.client.host import Host
from vambrace.client.said import plain
from vambrace.client.websocket import open_websocket
from vambrace.errors import ChannelClosed, ConfigError, DomainError, HostUnreachable, MalformedEvidence

MAX_LINE = 1 << 20  # a list of files has 500 names of 255 bytes, of which each may be six characters of JSON
MAX_DATA = 16 << 20
MAX_MESSAGE = 1 << 20
BLOCK = 64 << 10
ENDED = "'vambrace ps --all' shows whether the Realm still runs; then try again"
OTHER_VERSION = "the image is perhaps of another version of vambrace: build it again"
CONNECT_SECONDS = 60.0
REPLY_SECONDS = 180.0

Verify = Callable[[bytes, bytes, bytes], VerifiedRealm]
Result = TypeVar("Result")


def public_key(certificate: bytes) -> bytes:
    """SubjectPublicKeyInfo (DER) of a TLS certificate that anyone may have made. Raises ``MalformedEvidence``."""
    try:
        public = x509.load_der_x509_certificate(certificate).public_key()
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except UNREADABLE as error:
        raise MalformedEvidence("the channel's certificate is damaged") from error


class Channel:
    """An open, verified channel: a context manager. ``realm`` is what its token states.

    ``verify(token, nonce, spki)`` must raise unless the token was made for this nonce and this TLS key by the
    Realm that is meant. ``certificate`` and ``key`` are paths of the owner's PEM files.

    Raises ``HostError`` where the host does not connect, ``DomainError`` where the agent refuses, and what
    ``verify`` raises; the connection is closed then.
    """

    def __init__(self, host: Host, uuid: str, certificate: Path, key: Path, verify: Verify) -> None:
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = client_context(certificate, key)
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(open_websocket(host, host.channel_url(uuid)))
        try:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=False)
            self._run(self._tls.do_handshake)
            self.realm = self._attest(verify)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(WebSocketException, OSError, ssl.SSLError):
            self._stack.close()

    def request(self, operation: str, body: bytes = b"", **arguments: Any) -> tuple[dict[str, Any], bytes]:
        """Send one request, and the bytes ``body`` behind it; returns the reply and the bytes that followed it.
        ``DomainError`` if refused."""
        with self._lock:
            length = {"length": len(body)} if body else {}
            line = json.dumps({"op": operation, **length, **arguments}).encode() + b"\n"
            self._write(line + body)
            reply = self._reply()
            length = reply.get("length", 0)
            if type(length) is not int or not 0 <= length <= MAX_DATA:
                raise DomainError("the agent's reply has a wrong length", hint=OTHER_VERSION)
            data = self._take(length) if length else b""
        return accepted(reply), data

    def _attest(self, verify: Verify) -> VerifiedRealm:
        spki = public_key(self._tls.getpeercert(binary_form=True) or b"")
        nonce = os.urandom(32)
        reply, _ = self.request("attest", nonce=nonce.hex())
        return verify(decode_token(reply), nonce, spki)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            sent = self._run(lambda part=view: self._tls.write(part))  # type: ignore[misc]
            view = view[sent:]

    def _reply(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE:
                raise DomainError("the agent's reply is too long", hint=OTHER_VERSION)
            self._fill()
        return decode_reply(self._take(end + 1))

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _fill(self) -> None:
        data = self._run(lambda: self._tls.read(BLOCK))
        if not data:
            raise ChannelClosed("the Realm closed the channel", hint=ENDED)
        self._buffer += data

    def _run(self, action: Callable[[], Result]) -> Result:
        """Do one TLS operation, carrying what it sends and needs."""
        while True:
            try:
                result = action()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            except ssl.SSLError as error:
                with contextlib.suppress(ChannelClosed):
                    self._flush()
                raise broken(error) from error
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        if data := self._outgoing.read():
            try:
                self._socket.send(data)
            except (ConnectionClosed, OSError) as error:
                # What the other side said last (an alert, say) may still be waiting to be read.
                self._drain()
                raise ChannelClosed("the channel was cut", hint=ENDED) from error

    def _drain(self) -> None:
        with contextlib.suppress(ConnectionClosed, OSError, TimeoutError, ssl.SSLWantReadError):
            while isinstance(data := self._socket.recv(timeout=1), bytes):
                self._incoming.write(data)

    def _receive(self) -> None:
        try:
            data = self._socket.recv(timeout=REPLY_SECONDS)
        except TimeoutError as error:
            raise HostUnreachable("the Realm does not answer", hint="see 'vambrace ps'") from error
        except (ConnectionClosed, OSError) as error:
            raise ChannelClosed("the channel was cut", hint=ENDED) from error
        if not isinstance(data, bytes):
            raise DomainError("the host sent text on the channel", hint="is this a vambrace host?")
        self._incoming.write(data)


def decode_reply(line: bytes) -> dict[str, Any]:
    """Raises ``DomainError``: it is no JSON object."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DomainError("the agent's reply is not JSON", hint=OTHER_VERSION) from error
    if not isinstance(reply, dict):
        raise DomainError("the agent's reply is not an object", hint=OTHER_VERSION)
    return reply


def accepted(reply: dict[str, Any]) -> dict[str, Any]:
    """Raises ``DomainError``: the agent says no."""
    if reply.get("ok") is not True:
        hint = plain(reply.get("hint") or "") or "see 'vambrace logs' and 'vambrace ps'"
        raise DomainError(f"the Realm refused: {plain(reply.get('error') or 'no reason given')}", hint=hint)
    return reply


def decode_token(reply: dict[str, Any]) -> bytes:
    """The token of a reply to ``attest``, not verified. Raises ``MalformedEvidence``."""
    try:
        return base64.b64decode(reply.get("token", ""), validate=True)
    except (ValueError, TypeError) as error:
        raise MalformedEvidence("the agent's reply holds no token") from error


def broken(error: ssl.SSLError) -> DomainError:
    """What it means that TLS has failed."""
    if isinstance(error, ssl.SSLZeroReturnError):
        return ChannelClosed("the Realm closed the channel", hint=ENDED)
    if isinstance(error, ssl.SSLEOFError):
        return ChannelClosed("the channel was cut", hint=ENDED)
    reason = plain(error.reason or "TLS failed").lower().replace("_", " ")
    return DomainError(f"the Realm's TLS failed ({reason})", hint="only the owner named in its image may connect")


def client_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """The owner's side of TLS with an agent. Raises ``ConfigError``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # By design: the token is what proves the server's key (see the module's docstring).
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        context.load_cert_chain(str(certificate), str(key))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the owner's identity cannot be read ({certificate.parent})",
            hint="'vambrace owner create' makes one",
        ) from error
    return context
