"""The owner's channel: TLS 1.3 with a key made in this Realm, for the owner's certificate only.

Certificates' dates are not checked: a Realm has no clock until its owner is there. What counts are the keys, the
owner's in the measured configuration and ours in the token that ``attest`` gives.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
from collections.abc import Callable

from vambrace_agent import AgentError, programs
from vambrace_agent.pace import accept
from vambrace_agent.ports import Ports
from vambrace_agent.service import Service
from vambrace_agent.streams import MAX_WINDOW, WINDOW, Streams

PORT = 4050
MAX_CONNECTIONS = 8
MAX_LINE = 64 << 10
MAX_BODY = 256 << 10
HANDSHAKE_SECONDS = 60.0
IDLE_SECONDS = 600.0
_X509_V_FLAG_NO_CHECK_TIME = 0x200000
# SubjectPublicKeyInfo of an uncompressed P-256 key (RFC 5480) up to the point, which is 64 bytes.
_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")


def make_key(directory: str) -> tuple[str, str]:
    """A fresh ECDSA P-256 key and its certificate in ``directory``: their paths, in this order."""
    key, certificate = directory + "/key.pem", directory + "/certificate.pem"
    os.close(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -sha256 -days 3650"
        f" -subj /CN=vambrace-realm -keyout {key} -out {certificate}"
    ).split()
    if not programs.run(command):
        raise AgentError("openssl could not make the channel's key")
    return key, certificate


def public_key(certificate: str) -> bytes:
    """SubjectPublicKeyInfo (DER) in the certificate at path ``certificate``, which ``make_key`` made."""
    with open(certificate, encoding="ascii") as file:
        der = ssl.PEM_cert_to_DER_cert(file.read())
    place = der.find(_P256)
    if place < 0:
        raise AgentError("the channel's key is not what was asked for")
    return der[place : place + len(_P256) + 64]


def make_context(key: str, certificate: str, owner_pem: str) -> ssl.SSLContext:
    """The TLS server's side: 1.3 only, nothing resumed, a client certificate required. Removes ``key``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | _X509_V_FLAG_NO_CHECK_TIME)
    context.load_verify_locations(cadata=owner_pem)
    context.load_cert_chain(certificate, key)
    os.unlink(key)
    return context


def listen_vsock() -> socket.socket:
    """The listening socket that the host forwards the owner's bytes to."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, PORT))
    listener.listen(MAX_CONNECTIONS)
    return listener


class Channel:
    """Serves each connection of ``listener`` in a thread of its own, up to ``MAX_CONNECTIONS``."""

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        owner: bytes,
        service: Service,
        ports: Ports,
        wake: Callable[[], None],
    ) -> None:
        self.listener = listener
        listener.setblocking(False)
        self._context = context
        self._owner = owner
        self._service = service
        self._ports = ports
        self._wake = wake
        self._count = 0
        self._owners = 0
        self._lock = threading.Lock()

    @property
    def owners(self) -> int:
        """Connections on which the owner has shown the key."""
        return self._owners

    def accept(self) -> None:
        """Take one connection, if there is one."""
        accepted = accept(self.listener)
        if accepted is None:
            return
        connection, _ = accepted
        with self._lock:
            full = self._count >= MAX_CONNECTIONS
            self._count += not full
        if full:
            connection.close()
            return
        try:
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        except RuntimeError:  # no memory for another thread
            connection.close()
            with self._lock:
                self._count -= 1

    def _serve(self, connection: socket.socket) -> None:
        known = False
        try:
            connection.settimeout(HANDSHAKE_SECONDS)
            with self._context.wrap_socket(connection, server_side=True) as tls:
                if tls.getpeercert(binary_form=True) != self._owner:
                    return
                known = True
                with self._lock:
                    self._owners += 1
                tls.settimeout(IDLE_SECONDS)
                self._talk(tls)
        except (OSError, ValueError):
            pass  # the other side is gone, too slow or not the owner: nothing to tell anybody
        finally:
            connection.close()
            with self._lock:
                self._count -= 1
                self._owners -= known
            self._wake()

    def _talk(self, tls: ssl.SSLSocket) -> None:
        buffer = b""
        while True:
            while b"\n" not in buffer:
                data = tls.recv(MAX_LINE)
                if not data:
                    return
                buffer += data
                if len(buffer) > MAX_LINE:
                    return
            line, buffer = buffer.split(b"\n", 1)
            try:
                request = json.loads(line)
            except (ValueError, RecursionError):
                request = None
            if isinstance(request, dict) and request.get("op") == "streams":
                self._streams(tls, request.get("window"), buffer)
                return
            if isinstance(request, dict):
                request["body"], buffer = self._body(tls, request.get("length", 0), buffer)
            reply, data = self._service.handle(request)
            tls.sendall(json.dumps(reply).encode() + b"\n" + data)

    def _body(self, tls: ssl.SSLSocket, length: object, buffer: bytes) -> tuple[bytes, bytes]:
        """The bytes that follow a request, and what was read beyond them."""
        if type(length) is not int or not 0 <= length <= MAX_BODY:
            raise ValueError("no length")
        parts, have = [buffer], len(buffer)
        while have < length:
            data = tls.recv(MAX_BODY)
            if not data:
                raise ValueError("cut off")
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        return whole[:length], whole[length:]

    def _streams(self, tls: ssl.SSLSocket, window: object, unread: bytes) -> None:
        """From here on the connection carries streams to published ports; ``window``: what the owner takes of each."""
        if type(window) is not int or not 0 < window <= MAX_WINDOW:
            raise ValueError("no window")
        reply = {"ok": True, "ports": self._ports.published, "window": WINDOW}
        tls.sendall(json.dumps(reply).encode() + b"\n")
        Streams(tls, unread, self._ports, window).serve()
