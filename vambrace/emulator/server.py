"""The emulated server's life: build, up, down, status, reset, dump."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from vambrace.attest.claims import Component
from vambrace.attest.references import publish
from vambrace.debian.cache import Cache
from vambrace.emulator import build as building
from vambrace.emulator import firmware, fuse, provision, qemu
from vambrace.emulator.build import Progress, ServerBuild
from vambrace.errors import ServerError

PORT = 8443
READY_SECONDS = 240


def default_home() -> Path:
    """Where the emulated server lives: VAMBRACE_SERVER, else the user's data directory (XDG)."""
    configured = os.environ.get("VAMBRACE_SERVER")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "vambrace/server"


@dataclass(frozen=True)
class Access:
    """What a user of this server needs: how to reach it and what to trust."""

    url: str
    certificate: Path
    key: Path
    ca: Path
    vendor_root: Path
    references: Path


class Server:
    """One emulated server in ``home``. Raises ServerError, BuildError.

    ``insecure`` chooses a machine without TrustZone; its tokens say so.
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        port: int = 0,
        cache: Cache | None = None,
        vendor: Path | None = None,
        insecure: bool = False,
        newer: bool = False,
    ) -> None:
        self.home = (home or default_home()).resolve()
        self.port = port or int(os.environ.get("VAMBRACE_PORT", PORT))
        self.cache = cache or Cache()
        # A vendor makes many servers; its keys are not one server's.
        self.vendor = vendor or self.home.parent / "vendor"
        self.insecure = insecure
        self.newer = newer
        self.credentials = provision.Credentials(self.home / "credentials")
        self.published = self.home / "published"
        self.flash = self.home / "secure-flash.img"
        self.state = self.home / "state.img"

    def build(self, progress: Progress) -> ServerBuild:
        """Build what is not built yet and publish the reference values."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority, rot_key = provision.vendor(self.vendor)
        built = building.build(self.cache, progress, rot_key=rot_key, insecure=self.insecure, newer=self.newer)
        self.published.mkdir(exist_ok=True)
        shutil.copyfile(self.vendor / "vendor-root.pem", self.published / "vendor-root.pem")
        if built.firmware is not None:
            signer = built.firmware.signer
            components = [Component(name, bytes.fromhex(digest), signer) for name, digest in built.firmware.components]
            (self.published / "reference-values.corim").write_bytes(publish(components, authority))
        return built

    def access(self) -> Access:
        """How to reach this server; what is named exists after ``up``."""
        return Access(
            f"https://127.0.0.1:{self.running_port()}",
            self.credentials.client_certificate,
            self.credentials.client_key,
            self.credentials.ca,
            self.published / "vendor-root.pem",
            self.published / "reference-values.corim",
        )

    def running_port(self) -> int:
        try:
            return int(json.loads((self.home / "server.json").read_text())["port"])
        except (OSError, ValueError, KeyError):
            return self.port

    def up(self, progress: Progress) -> Access:
        """Start the server, wait until its API answers, have a new one endorsed by the vendor."""
        if qemu.running(self.home):
            progress("the server is running")
            self._wait(qemu.running(self.home) or 0, progress)
            return self.access()
        built = self.build(progress)
        self._check_port()
        self._prepare(built)
        machine = self._machine(built)
        started = time.monotonic()
        (self.home / "server.json").write_text(json.dumps({"port": self.port, "insecure": self.insecure}))
        try:
            pid = self._boot(machine, progress)
            self._wait(pid, progress)
            self._endorse(progress)
        except BaseException:
            self.down()
            raise
        progress(f"up after {time.monotonic() - started:.0f} s")
        return self.access()

    def down(self) -> bool:
        """Stop the server if it runs; whether it did."""
        pid = qemu.running(self.home)
        if pid is None:
            return False
        try:
            with qemu.Monitor(self.home / "qmp.sock", timeout=10) as monitor:
                monitor.execute("quit")
        except ServerError:
            os.kill(pid, signal.SIGKILL)
        if not qemu.wait_gone(pid, 20):
            os.kill(pid, signal.SIGKILL)
            qemu.wait_gone(pid, 10)
        (self.home / "qemu.pid").unlink(missing_ok=True)
        return True

    def status(self) -> dict[str, Any]:
        """``running``, ``answers``, and where it is."""
        pid = qemu.running(self.home)
        answer: dict[str, Any] = {"running": pid is not None, "home": str(self.home), "answers": False}
        if pid is not None:
            answer["url"] = f"https://127.0.0.1:{self.running_port()}"
            try:
                answer["host"] = self._get("/v1/host", timeout=20)
                answer["answers"] = True
            except (OSError, http.client.HTTPException, ServerError) as error:
                answer["error"] = str(error)
        return answer

    def reset(self) -> None:
        """Stop it and erase its state: the state disk, the credentials and the fuse. The build stays."""
        self.down()
        for path in (self.state, self.flash, self.home / "server.json"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.credentials.directory, ignore_errors=True)

    def dump(self, path: Path) -> int:
        """Write the machine's physical memory to ``path``; the number of bytes."""
        if qemu.running(self.home) is None:
            raise ServerError("the server is not running", hint="start it with 'vambrace server up'")
        size = qemu.RAM_MIB << 20
        if shutil.disk_usage(path.parent).free < size:
            raise ServerError(f"no space for {size >> 20} MiB in {path.parent}", hint="name another disk")
        path.touch(mode=0o600)
        with qemu.Monitor(self.home / "qmp.sock", timeout=300) as monitor:
            monitor.execute("pmemsave", val=qemu.RAM_BASE, size=size, filename=str(path.resolve()))
        return path.stat().st_size

    def _boot(self, machine: qemu.Machine, progress: Progress) -> int:
        progress("starting")
        pid = qemu.start(machine)
        qemu.open_gate(machine, pid, seconds=READY_SECONDS)
        return pid

    def _prepare(self, built: ServerBuild) -> None:
        if not self.credentials.exist():
            self.state.unlink(missing_ok=True)
            self.credentials.create()
        if not self.state.exists():
            provision.make_state_disk(self.state, self.credentials)
        if built.firmware is not None:
            fuse.update_flash(self.flash, built.firmware.image)

    def _machine(self, built: ServerBuild) -> qemu.Machine:
        host = built.host
        loads: tuple[tuple[Path, int], ...] = ()
        if built.firmware is not None:
            loads = (
                (host.kernel.image, firmware.KERNEL_ADDRESS),
                (host.initrd, firmware.INITRD_ADDRESS),
                (built.firmware.device_tree, firmware.DTB_ADDRESS),
            )
        return qemu.Machine(
            directory=self.home,
            port=self.port,
            kernel=host.kernel.image,
            initrd=host.initrd,
            root=host.disk,
            state=self.state,
            cmdline=host.cmdline(),
            flash=self.flash if built.firmware is not None else None,
            dtb=built.firmware.device_tree if built.firmware is not None else None,
            loads=loads,
        )

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise ServerError(
                    f"port {self.port} is in use", hint="choose another with VAMBRACE_PORT=NUMBER"
                ) from error

    def _wait(self, pid: int, progress: Progress) -> None:
        progress("waiting for the API")
        deadline = time.monotonic() + READY_SECONDS
        trouble = "no answer"
        while time.monotonic() < deadline:
            if qemu.wait_gone(pid, 0.5):
                raise ServerError(
                    "the emulated server stopped while starting; the end of its console:\n"
                    + qemu.tail(self.home / "console.log"),
                    hint=f"see {self.home}/console.log, secure.log and qemu.log",
                )
            try:
                self._get("/v1/host", timeout=10)
                return
            except ServerError:
                raise
            except (OSError, http.client.HTTPException) as error:
                trouble = str(error)
        raise ServerError(
            f"the API does not answer after {READY_SECONDS} s ({trouble}); the end of the console:\n"
            + qemu.tail(self.home / "console.log"),
            hint=f"see {self.home}/console.log and secure.log",
        )

    def _endorse(self, progress: Progress) -> None:
        """The factory's step: the vendor certifies the platform's key, then the life cycle is locked."""
        platform = self._get("/v1/platform", timeout=60)
        if platform.get("endorsed"):
            return
        progress("the vendor endorses the platform key and locks the fuse")
        authority, _ = provision.vendor(self.vendor)
        certificate = authority.certify(bytes.fromhex(platform["platform_key"]))
        lock = "?lock=1" if not self.insecure else ""
        self._request("PUT", f"/v1/platform/endorsement{lock}", certificate.public_bytes(Encoding.PEM), timeout=120)

    def _get(self, path: str, *, timeout: float) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._request("GET", path, None, timeout=timeout))
        return answer

    def _request(self, method: str, path: str, body: bytes | None, *, timeout: float) -> bytes:
        context = ssl.create_default_context(cafile=str(self.credentials.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.credentials.client_certificate, self.credentials.client_key)
        connection = http.client.HTTPSConnection("127.0.0.1", self.running_port(), timeout=timeout, context=context)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise ServerError(f"{method} {path}: {response.status} {data.decode(errors='replace')[:300]}")
        return data
