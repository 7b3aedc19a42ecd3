"""The daemon run for real on loopback, with a fake VMM; every answer is checked against openapi.yaml."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from described import Answer, check
from harness_certificates import Certificates

from vambrace.application import Application
from vambrace.attest.owner import OwnerIdentity
from vambrace.client.context import Context, HostEntry
from vambrace.config import Disk, DomainConfig, Zone
from vambrace.host.__main__ import serve
from vambrace.host.settings import NO_TRUSTZONE, Settings
from vambrace.image import write_bundle
from vambrace.jail.kinds import KINDS
from vambrace.partition.cgroups import Cgroups

FAKES = Path(__file__).parents[2] / "fakes"
sys.path.append(str(FAKES))

from plain_launcher import PlainLauncher  # noqa: E402

MIB = 1 << 20
#: Long, for a machine that has much else to do. Nobody waits for so long where all is well.
PATIENCE = 60.0
#: Domains share what the tests may use, and nothing of the machine's is changed.
CPUS = tuple(sorted(os.sched_getaffinity(0)))
PROCESSORS: dict[str, Any] = {"vmm_cpus": CPUS, "shared_cpus": CPUS, "allow_affinity": True}
two_processors = pytest.mark.skipif(len(CPUS) < 2, reason="one processor for domains, and another, are needed")
SPECIFICATION = json.loads((Path(__file__).parents[3] / "vambrace" / "host" / "openapi.yaml").read_text())


class Vmm:
    """The test's side of one fake VMM: what the daemon asked, and a way to speak as the VMM."""

    def __init__(self, stream: socket.socket, hello: dict[str, Any]) -> None:
        self.stream = stream
        self.pid: int = hello["pid"]
        self.address: int = hello["address"]  # of 64 pages
        self.environment: list[str] = hello["environment"]
        self._number = 0
        self._lines = b""
        self.seen: list[dict[str, Any]] = []

    async def request(self, op: str) -> dict[str, Any]:
        """The daemon's next request, which must be ``op``; looks at a change, at its own pace, are left out."""
        request: dict[str, Any] = {"op": "change"}
        while request["op"] == "change" != op:
            packet = await soon(asyncio.get_running_loop().sock_recv(self.stream, 1 << 17))
            request = json.loads(packet)
        assert request["op"] == op, request
        return request

    async def answer(self) -> dict[str, Any]:
        """The daemon's next answer to what was asked in the VMM's name."""
        answer: dict[str, Any] = json.loads(await soon(asyncio.get_running_loop().sock_recv(self.stream, 1 << 17)))
        assert "answer" in answer, answer
        return answer

    async def emit_exit(self) -> None:
        """Its process ends."""
        await self.emit(exit=0)

    async def emit(self, **event: Any) -> None:
        await asyncio.get_running_loop().sock_sendall(self.stream, json.dumps(event).encode())

    async def say(self, data: bytes) -> None:
        """Bytes from the guest's agent."""
        for start in range(0, len(data), 32 << 10):
            chunk = base64.b64encode(data[start : start + (32 << 10)]).decode()
            await self.emit(event="agent", data=chunk)

    async def hear(self) -> dict[str, Any]:
        """The monitor's next reply to the agent."""
        while b"\n" not in self._lines:
            self._lines += base64.b64decode((await self.request("agent"))["data"])
        line, self._lines = self._lines.split(b"\n", 1)
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def hear_of(self, op: str) -> dict[str, Any]:
        """The monitor's next reply to the agent; ``seen`` has the daemon's requests ``op`` that came before."""
        while not self._lines:
            packet = await soon(asyncio.get_running_loop().sock_recv(self.stream, 1 << 17))
            request = json.loads(packet)
            if request["op"] == "agent":
                self._lines += base64.b64decode(request["data"])
            elif request["op"] == op:
                self.seen.append(request)
            else:
                assert request["op"] == "change", request
        return await self.hear()

    async def tell(self, op: str, **arguments: Any) -> int:
        self._number += 1
        await self.say(json.dumps({"id": self._number, "op": op, **arguments}).encode() + b"\n")
        return self._number

    async def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One request of the agent and its reply, where the daemon asks the VMM nothing in between."""
        number = await self.tell(op, **arguments)
        reply = await self.hear()
        assert reply["id"] == number
        return reply


class Daemon:
    """``async with Daemon(...)`` starts it; ``stop`` and ``start`` again for a restart on the same state."""

    def __init__(self, directory: Path, certificates: Certificates, **changes: Any) -> None:
        self.directory = directory
        self.certificates = certificates
        keys = certificates.directory
        devices = directory / "dev"
        devices.mkdir(exist_ok=True)
        for kind in KINDS.values():
            if kind.device and not (devices / kind.device).exists():
                (devices / kind.device).parent.mkdir(exist_ok=True)
                (devices / kind.device).symlink_to("/dev/null")
        self.settings = Settings(
            certificate=keys / "server.pem",
            key=keys / "server.key",
            client_ca=keys / "ca.pem",
            state=directory / "state",
            endorsement=directory / "state" / "endorsement.pem",
            vendor_root=certificates.vendor_root,
            listen="127.0.0.1",
            insecure=NO_TRUSTZONE,
            devices=devices,
            **(PROCESSORS | {"port": 0, "guest_memory": 1 << 30, "cgroups": directory / "no-cgroups"} | changes),
        )
        self.launcher = PlainLauncher(sys.executable, str(FAKES / "fake_vmm.py"))
        self.hub_path = directory / "hub"
        self.hub = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.hub.bind(str(self.hub_path))
        self.hub.listen(16)
        self.hub.setblocking(False)
        self.agent_path = directory / "agent"
        self.dialled: list[tuple[int, int]] = []

    async def __aenter__(self) -> Daemon:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        self.hub.close()

    async def start(self, *, endorse: bool = True) -> None:
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(serve(self.settings, self.launcher, connect=self.connect, ready=ready))
        await asyncio.wait((self.task, ready), return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
        if self.task.done():
            self.task.result()
        self.url = f"https://127.0.0.1:{ready.result()}"
        connector = aiohttp.TCPConnector(ssl=self.certificates.client_context())
        self.session = aiohttp.ClientSession(self.url, connector=connector)
        if endorse:
            key = bytes.fromhex((await self.get("/v1/platform")).json["platform_key"])
            chain = self.certificates.endorse(key)
            assert (await self.call("PUT", "/v1/platform/endorsement", data=chain)).status == 200

    async def stop(self) -> None:
        await self.session.close()
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def connect(self, cid: int, port: int) -> socket.socket:
        """In place of vsock: the test listens on ``agent_path``; ``dialled`` has whom the daemon wanted."""
        self.dialled.append((cid, port))
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(stream, str(self.agent_path))
        except OSError:
            stream.close()
            raise
        return stream

    # HTTP

    async def get(self, path: str) -> Answer:
        return await self.call("GET", path)

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        async with self.session.request(method, path, **options) as response:
            answer = Answer(response.status, dict(response.headers), await response.read())
        check(SPECIFICATION, method, path, answer)
        return answer

    # Realms

    def config(self, **changes: Any) -> DomainConfig:
        zones = (
            Zone("system", 96 * MIB, 80, follow=changes.pop("follow", True)),
            Zone("analysis", 16 * MIB, 80),
            Zone("report", 16 * MIB, 30),
        )
        applications = tuple(
            Application(name, ("python3", "x.py"), {}, f"/app/{name}") for name in ("analysis", "report")
        )
        disk = Disk("base", hashlib.sha256(DISK).hexdigest(), len(DISK), 4096, "00" * 32, "00" * 32)
        values: dict[str, Any] = {
            "name": "patients",
            "cmdline": "quiet",
            "owner": self.certificates.owner.certificate_pem,
            "channel": self.certificates.owner.channel_pem,
            "hash": self.settings.suite.hash,
            "cipher": self.settings.suite.cipher,
            "zones": zones,
            "applications": applications,
            "disks": (disk,),
            "verdict_seconds": 60,
        }
        values |= changes

        return DomainConfig(**values)

    def kernel(self, script: dict[str, str] | None = None) -> bytes:
        return json.dumps({"hub": str(self.hub_path), **(script or {})}).encode()

    def measurement(self, **changes: Any) -> bytes:
        """What the fake VMM measures a domain of this configuration as."""
        return hashlib.sha256(self.config(**changes).encode() + self.kernel()).digest()

    async def provision(self, owner: OwnerIdentity) -> None:
        """Make ``owner`` the platform's."""
        answer = await self.call("PUT", "/v1/platform/owner", data=owner.certificate_pem.encode())
        assert answer.status == 200, answer.body

    async def upload(
        self, script: dict[str, str] | None = None, *, signature: bytes | None = None, **changes: Any
    ) -> str:
        """A bundle with this script for the fake VMM, sent to the daemon; returns its digest."""
        digest, data = self.bundle(script, signature=signature, **changes)
        answer = await self.call("PUT", f"/v1/images/{digest}", data=data)
        assert answer.status in (200, 201), answer.body
        return digest

    def bundle(
        self, script: dict[str, str] | None = None, *, signature: bytes | None = None, **changes: Any
    ) -> tuple[str, bytes]:
        """Digest and contents of such a bundle."""
        parts = [self.directory / name for name in ("kernel", "initrd", "disk")]
        contents = (self.kernel(script), b"initrd", DISK)
        for part, content in zip(parts, contents, strict=True):
            part.write_bytes(content)
        path = self.directory / "bundle.tar"
        write_bundle(path, self.config(**changes), parts[0], parts[1], parts[2:], signature)
        data = path.read_bytes()
        return hashlib.sha256(data).hexdigest(), data

    async def create(self, image: str, name: str = "patients") -> str:
        handle = str(uuid.uuid4())
        body = {"name": name, "image": image, "nonce": os.urandom(32).hex()}
        answer = await self.call("PUT", f"/v1/domains/{handle}", json=body)
        assert answer.status == 201, answer.body
        return handle

    async def vmm(self) -> Vmm:
        """The fake VMM that was started next, after its load."""
        loop = asyncio.get_running_loop()
        stream, _ = await soon(loop.sock_accept(self.hub))
        stream.setblocking(False)
        return Vmm(stream, json.loads(await soon(loop.sock_recv(stream, 1 << 17))))

    async def state(self, handle: str, *states: str) -> dict[str, Any]:
        """The Realm, once it is in one of ``states``; fails if it ends in another."""
        async with asyncio.timeout(PATIENCE):
            view: dict[str, Any] = (await self.get(f"/v1/domains/{handle}")).json
            while view["state"] not in states:
                assert not view["final"], view
                path = f"/v1/domains/{handle}?wait=10&unless={view['state']}"
                view = (await self.get(path)).json
        return view

    async def awaiting(self, script: dict[str, str] | None = None, **changes: Any) -> tuple[str, Vmm]:
        """A Realm that awaits its verdict."""
        handle = await self.create(await self.upload(script, **changes), changes.get("name", "patients"))
        vmm = await self.vmm()
        await vmm.request("load")
        await self.state(handle, "awaiting-verdict")
        return handle, vmm

    async def running(self, script: dict[str, str] | None = None, **changes: Any) -> tuple[str, Vmm]:
        """A Realm that runs, its agent ready."""
        handle, vmm = await self.awaiting(script, **changes)
        assert (await self.verdict(handle, "yes")).status == 200
        await vmm.request("start")
        await self.state(handle, "running")
        assert (await vmm.ask("report", state="ready"))["ok"]
        return handle, vmm

    async def verdict(self, handle: str, word: str, **changes: Any) -> Answer:
        """Send the owner's verdict; ``changes``: signer, instance, token."""
        view = (await self.get(f"/v1/domains/{handle}")).json
        token = changes.get("token") or (await self.get(f"/v1/domains/{handle}/token")).body
        message = changes.get("signer", self.certificates.owner).sign_verdict(
            changes.get("instance", bytes.fromhex(view["instance"])),
            self.settings.suite.digest(token),
            yes=word == "yes",
        )
        return await self.verdict_bytes(handle, message)

    async def verdict_bytes(self, handle: str, message: bytes) -> Answer:
        return await self.call("POST", f"/v1/domains/{handle}/verdict", data=message)


DISK = bytes(8192)


T = TypeVar("T")


async def soon(what: Awaitable[T]) -> T:
    async with asyncio.timeout(PATIENCE):
        return await what


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def alone(tree: Cgroups, *cpus: int) -> dict[str, Any]:
    """Settings of a host that gives ``cpus`` to one domain alone each."""
    return {"vmm_cpus": cpus, "shared_cpus": (), "allow_affinity": False, "cgroups": tree.root}


def introduce(daemon: Daemon, home: Path | None = None) -> None:
    """Make it the user's current host; with ``home``, the user's state, make the owner the user."""
    keys = daemon.certificates
    if home is not None:
        shutil.copytree(keys.owner.key_path.parent, home / "owner", dirs_exist_ok=True)
    entry = HostEntry(
        url=daemon.url,
        certificate=str(keys.directory / "client.pem"),
        key=str(keys.directory / "client.key"),
        ca=str(keys.directory / "ca.pem"),
        vendor_root=str(keys.vendor_root),
        references=str(keys.directory / "none"),
    )
    Context().add_host("test", entry)


def leftovers(daemon: Daemon) -> list[Path]:
    """Files of uploads under way."""
    return list((daemon.settings.state / "tmp").iterdir())


def run(directory: Path, certificates: Certificates, test: Callable[[Daemon], Awaitable[None]], **changes: Any) -> None:
    """Run ``test`` against a fresh daemon."""

    async def body() -> None:
        async with Daemon(directory, certificates, **changes) as daemon:
            await test(daemon)

    asyncio.run(body())
