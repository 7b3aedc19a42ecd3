"""A published port without a Realm: the product's agent, host and client, each a process of this machine.

In place of vsock there is a Unix socket, and in place of TrustZone's keys there are software keys. Beside them the same
program serves with TLS of its own: what an owner would use who trusts the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import select
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from bench.parts import peer
from bench.parts.evidence import POLICY, Platform, anchors
from vambrace.attest.appraisal import appraise
from vambrace.attest.challenge import channel_challenge
from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.owner import OwnerIdentity
from vambrace.attest.verify import VerifiedRealm, accepted
from vambrace.client.host import Host
from vambrace.client.pipe import Pipe
from vambrace.client.tunnel import Forward, Tunnel
from vambrace.emulator.provision import Credentials
from vambrace.errors import VambraceError
from vambrace.host.channel import relay
from vambrace.host.lifecycle import Lifecycle, State

sys.path.insert(0, str(Path(__file__).parents[2] / "guest/agent"))

from vambrace_agent import channel as agent_channel  # noqa: E402
from vambrace_agent.events import Events  # noqa: E402
from vambrace_agent.ports import Ports  # noqa: E402
from vambrace_agent.service import Service  # noqa: E402
from vambrace_agent.settings import Application  # noqa: E402
from vambrace_agent.supervisor import Supervisor  # noqa: E402

INSTANCE = bytes(16)
LOOPBACK = ("127.0.0.1", 0)

Address = tuple[str, int]


@dataclass(frozen=True)
class Ways:
    """To the same program: a local port of ours, and the program's own TLS with the context for it."""

    connect: Address
    tls: Address
    context: ssl.SSLContext


@contextlib.contextmanager
def published() -> Iterator[Ways]:
    """Everything runs until this is left."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        owner, vendor = OwnerIdentity.create(folder / "owner"), VendorAuthority.create()
        keys = Credentials(folder / "keys")
        keys.create()
        program, secured, door = (stack.enter_context(socket.create_server(LOOPBACK, backlog=64)) for _ in range(3))
        agent = stack.enter_context(socket.socket(socket.AF_UNIX))
        agent.bind(str(folder / "agent"))
        agent.listen(8)
        port = program.getsockname()[1]

        def start(work: Callable[..., None], *arguments: object) -> None:
            process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)

        start(serve, program, None)
        start(serve, secured, server_context(keys.server))
        start(serve_agent, agent, folder, owner, Platform(vendor), port)
        start(serve_host, door, server_context(keys.server), str(folder / "agent"))
        host = Host(f"https://127.0.0.1:{door.getsockname()[1]}", keys.client_certificate, keys.client_key, keys.ca)
        trusted = anchors(vendor)

        def verify(token: bytes, nonce: bytes, spki: bytes) -> VerifiedRealm:
            challenge = channel_challenge(nonce, spki, INSTANCE)
            return accepted(appraise(token, anchors=trusted, policy=POLICY, challenge=challenge))

        tunnel = Tunnel(lambda: Pipe.open(host, "realm", owner.certificate_path, owner.key_path, verify))
        stack.callback(tunnel.close)
        forward = stack.enter_context(Forward(tunnel, port, LOOPBACK, complain))
        assert isinstance(forward.address, tuple)
        yield Ways(forward.address, secured.getsockname(), host.tls)


def complain(error: VambraceError) -> None:
    print(f"bench: {error.message}", file=sys.stderr)


def server_context(keys: Path) -> ssl.SSLContext:
    """As the host's: TLS 1.3, a client certificate required."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(keys / "server.pem", keys / "server.key")
    context.load_verify_locations(keys / "clients.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def serve(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    """The program, with TLS or without."""

    def one(stream: socket.socket) -> None:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            peer.serve(context.wrap_socket(stream, server_side=True) if context else stream)

    while True:
        threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()


class Monitor:
    """Stands for the daemon, of which only tokens are asked."""

    def __init__(self, platform: Platform) -> None:
        self.attest = platform.token


def serve_agent(listener: socket.socket, folder: Path, owner: OwnerIdentity, platform: Platform, port: int) -> None:
    """The agent's channel, for an application that publishes ``port``."""
    fields = {"name": "program", "command": [], "environment": {}, "directory": "/", "restarts": 0, "results": []}
    application = Application(1, {**fields, "memory": 0, "ports": [{"port": port}]})
    application.uid = os.getuid()
    key, certificate = agent_channel.make_key(str(folder))
    context = agent_channel.make_context(key, certificate, owner.certificate_pem)
    monitor: Any = Monitor(platform)

    def nothing(_application: Application) -> None:
        pass

    events = Events("sha-256", lambda register, digest: None)
    service = Service(
        Supervisor([], lambda application, output: 0, nothing, nothing, select.poll()),
        monitor,
        events,
        agent_channel.public_key(certificate),
        INSTANCE,
        lambda: None,
        lambda nanoseconds: None,
    )
    der = ssl.PEM_cert_to_DER_cert(owner.certificate_pem)
    doors = agent_channel.Channel(listener, context, der, service, Ports([application]), lambda: None)
    listener.setblocking(True)
    while True:
        doors.accept()


@dataclass
class Domain:
    """What the daemon's relay asks of one."""

    channels: int = 0
    closers: set[Callable[[], None]] = field(default_factory=set)
    cid: int = 3
    lifecycle: Lifecycle = field(default_factory=lambda: Lifecycle(State.RUNNING))


def serve_host(listener: socket.socket, context: ssl.SSLContext, agent: str) -> None:
    """The daemon's relay, behind its TLS."""

    async def connect(cid: int, port: int) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(stream, agent)
        return stream

    async def channel(request: web.Request) -> web.StreamResponse:
        return await relay(request, domain, connect, 8)

    domain = Domain()
    application = web.Application()
    application.router.add_get("/v1/domains/{uuid}/channel", channel)
    web.run_app(application, sock=listener, ssl_context=context, print=None, handle_signals=False, access_log=None)
