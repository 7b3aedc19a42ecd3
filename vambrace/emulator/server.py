"""The emulated server's life: build, up, down, status, reset, dump."""

from __future__ import annotations

import errno
import fcntl
import http.client
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vambrace.debian.cache import Cache
from vambrace.emulator import build as building
from vambrace.emulator import factory, firmware, fuse, provision, qemu
from vambrace.emulator.api import Api
from vambrace.emulator.build import Progress, ServerBuild
from vambrace.emulator.dump import dump_memory
from vambrace.emulator.hostroot import PRODUCT, Variant
from vambrace.emulator.published import Published
from vambrace.emulator.starting import Starter
from vambrace.emulator.vendor import Vendor
from vambrace.errors import NoSpace, ServerError, UsageError
from vambrace.suite import NIST, Suite

PORT = 8443


def hint_for(hint: str | None, suite: Suite) -> str | None:
    """``hint`` with its commands as they are given for the machine of ``suite``: another one would do it to another
    machine."""
    if hint is None or suite == NIST:
        return hint
    return re.sub("'vambrace server [a-z]+", rf"\g<0> --suite {suite.name}", hint)


def default_home(suite: Suite = NIST) -> Path:
    """Where the emulated server of ``suite`` lives: VAMBRACE_SERVER, else the user's data directory (XDG); for another
    suite than the default one a folder beside that."""
    configured = os.environ.get("VAMBRACE_SERVER")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    home = Path(configured) if configured else data / "vambrace/server"
    return home if suite == NIST else home.with_name(f"{home.name}-{suite.name}")


def _configured_port() -> int:
    text = os.environ.get("VAMBRACE_PORT") or str(PORT)
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise UsageError(f"VAMBRACE_PORT is {text!r}", hint="a TCP port is a number from 1 to 65535")
    return int(text)


@dataclass(frozen=True)
class Access:
    """What a user of this server needs: how to reach it and what to trust."""

    url: str
    certificate: Path
    key: Path
    ca: Path
    vendor_root: Path
    references: Path
    revocation_list: Path
    platform_owner: Path  # the private key


class Server:
    """One emulated server in ``home``. Raises ServerError, BuildError.

    ``insecure`` chooses a machine without TrustZone; its tokens say so. ``variant`` is another host than the
    product's, for tests and benchmarks. With ``devices`` it has PCI devices for its domains. ``broker`` is the port of
    this machine that its Realms reach as ``qemu.BROKER``. ``suite`` is the host's, its vendor's and its owner's.
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        port: int = 0,
        cache: Cache | None = None,
        vendor: Path | None = None,
        insecure: bool = False,
        suite: Suite = NIST,
        newer: bool = False,
        variant: Variant = PRODUCT,
        devices: bool = False,
        broker: int = qemu.BROKER[1],
    ) -> None:
        self.home = (home or default_home(suite)).resolve()
        self.port = port or _configured_port()
        self.cache = cache or Cache()
        # A vendor makes many servers; its keys are not one server's.
        self.vendor = vendor or self.home.parent / "vendor"
        self.insecure = insecure
        self.suite = suite
        self.newer = newer
        self.variant = variant
        self.devices = devices
        self.broker = broker
        self.credentials = provision.Credentials(self.home / "credentials")
        self.api = Api(self.credentials, self.running_port)
        self.starter = Starter(self.home, self.api, devices)
        self.published = Published(self.home / "published")
        self.flash = self.home / "secure-flash.img"
        self.state = self.home / "state.img"

    def build(self, progress: Progress) -> ServerBuild:
        """Build what is not built yet and publish the reference values."""
        qemu.program()  # it draws the device tree, at the end of a long build
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority, rot_key = self._vendor()
        built = building.build(
            self.cache,
            progress,
            rot_key=rot_key,
            vendor_root=authority.certificate_pem,
            insecure=self.insecure,
            suite=self.suite,
            newer=self.newer,
            variant=self.variant,
        )
        self.published.publish(built, authority)
        return built

    def _vendor(self) -> tuple[Vendor, Path]:
        """The authority for this kind of server, and its firmware signing key.

        The vendor certifies no software key: whoever has one could sign that it is in TrustZone.
        """
        directory = self.vendor / "insecure" if self.insecure else self.vendor
        return provision.vendor(directory, self.suite, software=self.insecure)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process starts, stops or resets this server: they write the same flash and disks."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.home / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def access(self) -> Access:
        """How to reach this server; what is named exists after ``up``."""
        return Access(
            f"https://127.0.0.1:{self.running_port()}",
            self.credentials.client_certificate,
            self.credentials.client_key,
            self.credentials.ca,
            self.published.vendor_root,
            self.published.references,
            self.published.revocation_list,
            provision.platform_owner(self.home, self.suite).key_path,
        )

    def running_port(self) -> int:
        """The TCP port of the server that runs; of the next one where none does."""
        return self._running("port", self.port)

    def running_broker(self) -> int:
        """The port of this machine that Realms of that server reach as ``qemu.BROKER``."""
        return self._running("broker", self.broker)

    def _running(self, key: str, otherwise: int) -> int:
        try:
            return int(json.loads((self.home / "server.json").read_text())[key])
        except (OSError, ValueError, KeyError):
            return otherwise

    def _kind(self) -> dict[str, Any]:
        return {
            "insecure": self.insecure,
            "suite": self.suite.name,
            "variant": self.variant.name,
            "devices": self.devices,
        }

    def _check_running(self, *only: str) -> None:
        """Raises ServerError: another server than this one runs here; perhaps ``only`` some of its properties count."""
        try:
            running = json.loads((self.home / "server.json").read_text())
        except (OSError, ValueError):
            return
        if any(running.get(key) != value for key, value in self._kind().items() if not only or key in only):
            kind = "without TrustZone" if running.get("insecure") else f"with the host {running.get('variant')!r}"
            kind += f", of the suite {running.get('suite')!r}"
            kind += " and PCI devices" if running.get("devices") else " and no PCI devices"
            raise ServerError(f"another server runs here, {kind}", hint="stop it first: 'vambrace server down'")

    def up(self, progress: Progress, *, cold: bool = False) -> Access:
        """Start the server, wait until its API answers, have a new one endorsed by the vendor.

        Resumes the saved state where there is one, unless ``cold``; the first start after the factory step takes it.
        """
        if qemu.running(self.home) is None:
            self._check_port()  # before the long build
            qemu.program()
        with self._alone():
            return self._up(progress, cold=cold)

    def _up(self, progress: Progress, *, cold: bool, lock: bool = True) -> Access:
        pid = qemu.running(self.home)
        if pid is not None:
            self._check_running()
            progress("the server is running")
            self.published.publish_revocations(self._vendor()[0])
            self.starter.wait(pid, progress)
            return self.access()
        built = self.build(progress)
        try:
            self._prepare(built)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise NoSpace(str(self.home), "the server's disks", hint="free some, or set VAMBRACE_SERVER") from error
        machine = self.machine(built)
        started = time.monotonic()
        ports = {"port": self.port, "broker": self.broker}
        (self.home / "server.json").write_text(json.dumps(ports | self._kind()))
        try:
            how = self.starter.start(machine, progress, cold=cold)
            factory.begin(self.api, self._vendor()[0], progress, lock=lock and not self.insecure)
            factory.own(self.api, provision.platform_owner(self.home, self.suite), progress)
        except BaseException:
            qemu.stop(self.home)
            raise
        progress(f"up after {time.monotonic() - started:.1f} s ({how})")
        return self.access()

    def factory(self, progress: Progress, *, lock: bool = True) -> Access:
        """The factory's step, once: burn a fuse, start, have the vendor certify the platform's key, and lock it.

        Without ``lock`` the life cycle stays "not provisioned", and verifiers refuse its tokens; the step can be
        completed later. ``up`` does all of it for a new machine. Raises ``ServerError`` for a machine that was locked.
        """
        if qemu.running(self.home) is None:
            self._check_port()
        with self._alone():
            if self.flash.exists():
                factory.require_unlocked(fuse.read_fuse(self.flash))
            access = self._up(progress, cold=True, lock=lock)
            factory.complete(self.api, self._vendor()[0], progress, lock=lock)
            return access

    def renew(self, progress: Progress) -> None:
        """Have the vendor certify the running platform's key anew, as long as it is in service."""
        with self._platform():
            if self.flash.exists():  # who has opened a machine also has a say in what its API answers
                factory.require_in_service(fuse.read_fuse(self.flash).lifecycle)
            factory.certify(self.api, self._vendor()[0], progress, lock=False)

    def retire(self, state: str, progress: Progress) -> None:
        """Take the running platform to ``state``, "debug" or "decommissioned", for ever, by its owner's word.

        Its vendor revokes the key that it had in service.
        """
        with self._platform():
            key = bytes.fromhex(self.api.get("/v1/platform")["platform_key"])
            factory.retire(self.api, provision.platform_owner(self.home, self.suite), state, progress)
            authority, _ = self._vendor()
            authority.retire(key)
            self.published.publish_revocations(authority)

    def revoke(self, instance: bytes | None = None) -> int:
        """Have the vendor revoke all certificates of the platform ``instance`` (UEID, as its tokens have it), or of the
        one that runs here, and publish that; how many were not revoked before.

        Whoever has the list refuses this machine from then on; its key is never certified again.
        """
        if instance is not None:
            authority, _ = self._vendor()
            revoked = authority.revoke_instance(instance)
        else:
            with self._platform():
                key = bytes.fromhex(self.api.get("/v1/platform")["platform_key"])
                authority, _ = self._vendor()
                revoked = authority.revoke(key)
        self.published.publish_revocations(authority)
        return revoked

    @contextmanager
    def _platform(self) -> Iterator[None]:
        """Alone with the server that runs. Raises ServerError: there is none, or it has another vendor and owner."""
        with self._alone():
            self._check_running("insecure", "suite")
            if qemu.running(self.home) is None:
                raise ServerError("the server is not running", hint="start it with 'vambrace server up'")
            yield

    def down(self) -> bool:
        """Stop the server if it runs; whether it did."""
        with self._alone():
            return qemu.stop(self.home)

    def status(self) -> dict[str, Any]:
        """``running``, ``answers``, and where it is; ``fuse`` of a machine that has one."""
        pid = qemu.running(self.home)
        answer: dict[str, Any] = {"running": pid is not None, "home": str(self.home), "answers": False}
        if self.flash.exists():
            answer["fuse"] = fuse.read_fuse(self.flash).as_dict()
        if pid is not None:
            answer["url"] = f"https://127.0.0.1:{self.running_port()}"
            try:
                answer["host"] = self.api.get("/v1/host", timeout=20)
                answer["answers"] = True
            except (OSError, http.client.HTTPException, ServerError) as error:
                answer["error"] = str(error)
        return answer

    def reset(self) -> None:
        """Stop it and erase its state: the state disk, the credentials and the fuse. The build stays."""
        with self._alone():
            qemu.stop(self.home)
            for path in (self.state, self.flash, self.home / "server.json", self.home / "nvme.img"):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.credentials.directory, ignore_errors=True)
            for saved in (self.home / "saved", self.home / "saved.new"):
                shutil.rmtree(saved, ignore_errors=True)

    def dump(self, path: Path) -> int:
        """Write the machine's physical memory to ``path``; the number of bytes."""
        return dump_memory(self.home, path)

    def _prepare(self, built: ServerBuild) -> None:
        if not self.credentials.exist():
            self.state.unlink(missing_ok=True)
            self.credentials.create()
        if not self.state.exists():
            provision.make_state_disk(self.state, self.credentials)
        if built.firmware is not None:
            fuse.update_flash(self.flash, built.firmware.image, built.firmware.signer)

    def machine(self, built: ServerBuild) -> qemu.Machine:
        """The hardware, with what was ``built`` in it."""
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
            ports=self.variant.ports,
            broker=self.broker,
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
