"""A small host on loopback for the client's tests: real TLS, real tokens, the real agent behind the channel.

Only what needs an ARM machine is a stand-in: the trusted application (``attest_factory.Platform``) and the
monitor. ``LoopbackHost`` is a host as the operator could write one, so that it can also misbehave.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import ssl
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from attest_factory import COMPONENTS, Platform
from client_agent import Agent, Monitor
from config_factory import MIB, make_application, make_disk, make_kernel
from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest import suites
from vambrace.attest.challenge import launch_challenge
from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.owner import OwnerIdentity, verify_verdict
from vambrace.attest.references import publish
from vambrace.client.context import Context, HostEntry
from vambrace.config import DomainConfig, Zone
from vambrace.emulator.provision import Credentials
from vambrace.errors import VambraceError
from vambrace.image import Bundle, write_bundle
from vambrace.suite import NIST, Suite

FINAL = ("succeeded", "refused", "failed", "destroyed")
SCRIPT = (
    'echo "hello from $NAME"; mkdir -p "$ROOT/results/$NAME"; printf "%s" "result of $NAME" > '
    '"$ROOT/results/$NAME/out.txt"; while [ ! -e "$ROOT/go" ]; do sleep 0.05; done; echo done'
)


def make_platform(suite: Suite = NIST) -> Platform:
    """A good machine that is endorsed today."""
    authority = VendorAuthority.create(suite=suite)
    platform = Platform(authority, suites.generate(suite), suites.generate(suite), suite=suite)
    platform.chain = [platform.authority.certify(platform.pak_cose).public_bytes(Encoding.DER)]
    return platform


@dataclass
class Record:
    uuid: str
    name: str
    image: str
    nonce: str
    monitor: Monitor
    token: bytes
    state: str = "awaiting-verdict"
    reason: str = ""
    executed: bool = False
    verdicts: list[bool] = field(default_factory=list)
    agent: Agent | None = None
    channels: int = 0  # how many there were
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    channel_to: int | None = None  # a port instead of the agent's: a host that lies

    def as_dict(self) -> dict[str, Any]:
        return {
            "uuid": self.uuid,
            "name": self.name,
            "image": self.image,
            "nonce": self.nonce,
            "state": self.state,
            "final": self.state in FINAL,
            "reason": self.reason,
            "executed": self.executed,
            "instance": self.monitor.instance.hex(),
            "measurement": self.monitor.measurement.hex(),
            "memory": 1 << 28,
            "agent": None,
            "created": 1.0,
        }


class LoopbackHost:
    """Context manager: the host runs in a thread. ``measurement`` is what its Realms measure as."""

    def __init__(self, directory: Path, platform: Platform, config: DomainConfig, measurement: bytes) -> None:
        self.directory, self.platform, self.config = directory, platform, config
        self.measurement = measurement
        self.images: dict[str, int] = {}
        self.blobs: dict[str, bytes] = {}
        self.sent = 0  # bytes of images
        self.realms: dict[str, Record] = {}
        self.busy = 0  # how many channels to refuse with 503 first
        self.credentials = Credentials(directory / "credentials")
        self.credentials.create()
        self.url = ""

    def __enter__(self) -> LoopbackHost:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        for record in self.realms.values():
            if record.agent:
                record.agent.close()
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 30, middlewares=[_problems])
        app.router.add_get("/v1/host", self._host)
        app.router.add_get("/v1/images", self._list_images)
        app.router.add_head("/v1/images/{digest}", self._has_image)
        app.router.add_put("/v1/images/{digest}", self._put_image)
        app.router.add_head("/v1/blobs/{digest}", self._has_blob)
        app.router.add_get("/v1/domains", self._list_realms)
        app.router.add_put("/v1/domains/{uuid}", self._create)
        app.router.add_get("/v1/domains/{uuid}", self._get)
        app.router.add_delete("/v1/domains/{uuid}", self._delete)
        app.router.add_get("/v1/domains/{uuid}/token", self._token)
        app.router.add_post("/v1/domains/{uuid}/verdict", self._verdict)
        app.router.add_get("/v1/domains/{uuid}/channel", self._channel)
        self._runner = web.AppRunner(app, shutdown_timeout=0.5)
        await self._runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # as the daemon
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.credentials.server / "server.pem", self.credentials.server / "server.key")
        context.load_verify_locations(self.credentials.server / "clients.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    def record(self, request: web.Request) -> Record:
        record = self.realms.get(request.match_info["uuid"])
        if record is None:
            raise _Problem(404, "not-found", "no such Realm", "list them")
        return record

    async def _host(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "test"})

    async def _list_images(self, _: web.Request) -> web.Response:
        return web.json_response({"images": [{"sha256": digest} for digest in self.images]})

    async def _has_image(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["digest"] in self.images else 404)

    async def _has_blob(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["digest"] in self.blobs else 404)

    async def _put_image(self, request: web.Request) -> web.Response:
        data = await request.read()
        self.sent += len(data)
        for blob in request.query.getall("blob", []):
            offset, name = blob.split(":")
            if name not in self.blobs:
                raise _Problem(404, "not-found", "no such blob", "send all of it")
            data = data[: int(offset)] + self.blobs[name] + data[int(offset) :]
        digest = request.match_info["digest"]
        if hashlib.sha256(data).hexdigest() != digest:
            raise _Problem(422, "image", "the digest differs", "send it again")
        self.images[digest] = len(data)
        return web.json_response({"sha256": digest}, status=201)

    async def _list_realms(self, _: web.Request) -> web.Response:
        return web.json_response({"domains": [record.as_dict() for record in self.realms.values()]})

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if any(r.name == body["name"] and r.state not in FINAL for r in self.realms.values()):
            raise _Problem(409, "conflict", f"a Realm is called {body['name']}", "choose another name")
        uuid, instance = request.match_info["uuid"], os.urandom(16)
        monitor = Monitor(self.platform, self.config, self.measurement, instance)
        token = monitor.token(launch_challenge(bytes.fromhex(body["nonce"]), instance))
        record = Record(uuid, body["name"], body["image"], body["nonce"], monitor, token)
        self.realms[uuid] = record
        return web.json_response(record.as_dict(), status=201)

    async def _get(self, request: web.Request) -> web.Response:
        record = self.record(request)
        wait, unless = float(request.query.get("wait", "0")), request.query.get("unless", "")
        for _ in range(int(wait * 20)):
            if record.state != unless or record.state in FINAL:
                break
            await asyncio.sleep(0.05)
        return web.json_response(record.as_dict())

    async def _delete(self, request: web.Request) -> web.Response:
        record = self.record(request)
        if record.state not in FINAL:
            record.state, record.reason = "destroyed", "on request"
        return web.json_response(record.as_dict())

    async def _token(self, request: web.Request) -> web.Response:
        return web.Response(body=self.record(request).token)

    async def _verdict(self, request: web.Request) -> web.Response:
        record = self.record(request)
        try:
            yes = verify_verdict(
                await request.read(),
                owner=self.config.owner,
                instance=record.monitor.instance,
                token_digest=hashlib.sha256(record.token).digest(),
            )
        except VambraceError as error:
            raise _Problem(403, "message-refused", str(error), "sign it") from None
        record.verdicts.append(yes)
        if yes:
            self.start(record)
        else:
            record.state, record.reason = "refused", "the owner said no"
        return web.json_response(record.as_dict())

    def start(self, record: Record) -> None:
        def ended(state: str, detail: str) -> None:
            if record.state == "running":
                record.state, record.reason = state, detail

        record.agent = Agent(self.directory / record.uuid, record.monitor, ended)
        record.state, record.executed = "running", True

    def cut(self, record: Record) -> None:
        """Cut all channels of a Realm, in the middle of whatever they carry."""
        for writer in record.writers:
            self._loop.call_soon_threadsafe(writer.transport.abort)

    async def _channel(self, request: web.Request) -> web.StreamResponse:
        record = self.record(request)
        if record.state != "running" or record.agent is None:
            raise _Problem(409, "conflict", f"the Realm is {record.state}", "wait")
        if self.busy:
            self.busy -= 1
            raise _Problem(503, "host", "the agent does not answer yet", "try again")
        reader, writer = await asyncio.open_connection("127.0.0.1", record.channel_to or record.agent.port)
        record.channels += 1
        record.writers.append(writer)
        answer = web.WebSocketResponse(compress=False)
        await answer.prepare(request)

        async def down() -> None:
            # An agent that refuses a client may reset the connection: the channel ends all the same.
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(5000):
                    await answer.send_bytes(data)
            await answer.close()

        task = asyncio.create_task(down())
        async for message in answer:
            if message.type is WSMsgType.BINARY:
                writer.write(message.data)
                await writer.drain()
        task.cancel()
        writer.close()
        return answer


class _Problem(Exception):
    def __init__(self, status: int, kind: str, detail: str, hint: str) -> None:
        self.status = status
        self.body = {"type": f"tag:vambrace.dev,2026:problem/{kind}", "status": status, "detail": detail, "hint": hint}


@web.middleware
async def _problems(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except _Problem as error:
        return web.json_response(error.body, status=error.status, content_type="application/problem+json")


@dataclass
class World:
    """A user with an owner's identity, an image, and a host that is set up as the current one."""

    context: Context
    owner: OwnerIdentity
    bundle: Path
    config: DomainConfig
    platform: Platform
    host: LoopbackHost
    measurement: bytes

    @property
    def record(self) -> Record:
        """The only Realm, or the last."""
        return list(self.host.realms.values())[-1]

    @property
    def agent(self) -> Agent:
        assert self.record.agent is not None
        return self.record.agent


def make_bundle(directory: Path, owner: OwnerIdentity, **changes: Any) -> Bundle:
    """A bundle of two shell scripts that this machine can run in the place of a Realm's."""
    parts = [(directory / name) for name in ("kernel", "initrd", "base.erofs", "apps.erofs")]
    for part, data in zip(parts, (make_kernel(), b"initrd", bytes(8192), b"\1" * 8192), strict=True):
        part.write_bytes(data)
    names = ("analysis", "report")
    disks = [make_disk(part.stem, sha256=hashlib.sha256(part.read_bytes()).hexdigest()) for part in parts[2:]]
    fields: dict[str, Any] = {
        "name": "patients",
        "cmdline": "quiet",
        "owner": owner.certificate_pem,
        "zones": (Zone("system", 128 * MIB, 80, True), *(Zone(name, 16 * MIB, 80) for name in names)),
        "applications": tuple(make_application(name, command=("sh", "-c", SCRIPT)) for name in names),
        "disks": tuple(disks),
        "collect_seconds": 20,
    }
    return write_bundle(
        directory / "patients.vambrace", DomainConfig(**{**fields, **changes}), parts[0], parts[1], parts[2:]
    )


def make_world(directory: Path, host_directory: Path, **changes: Any) -> World:
    """Everything but a running host: ``living_world`` has that. ``changes``: of the image."""
    context = Context()
    context.owner.mkdir(parents=True, mode=0o700)
    owner = OwnerIdentity.create(context.owner)
    bundle = make_bundle(directory, owner, **changes)
    platform = make_platform()
    measurement = bundle.measurement()
    host = LoopbackHost(host_directory, platform, bundle.config, measurement)
    return World(context, owner, bundle.path, bundle.config, platform, host, measurement)


@contextlib.contextmanager
def living_world(directory: Path, **changes: Any) -> Iterator[World]:
    """All of it, in ``directory``, while its host runs; ``changes``: of the image."""
    made = make_world(directory, directory / "host", **changes)
    with made.host:
        register(made, directory)
        yield made


def register(world: World, directory: Path) -> None:
    root, references = directory / "vendor-root.pem", directory / "reference-values.corim"
    root.write_bytes(world.platform.authority.certificate_pem)
    references.write_bytes(publish(COMPONENTS, world.platform.authority))
    keys = world.host.credentials
    entry = HostEntry(
        url=world.host.url,
        certificate=str(keys.client_certificate),
        key=str(keys.client_key),
        ca=str(keys.ca),
        vendor_root=str(root),
        references=str(references),
    )
    world.context.add_host("test", entry)
