"""A host's HTTP API (docs/architecture.md, section 11): TLS with client certificates, problem details as our errors."""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

import urllib3

from vambrace.client.context import UUID, Context
from vambrace.client.partition import Partition, Verification
from vambrace.client.progress import Progress, silent
from vambrace.client.said import plain
from vambrace.client.usage import Usage
from vambrace.client.volumes import VolumeInfo
from vambrace.errors import (
    CapacityError,
    ConfigError,
    Conflict,
    DomainError,
    HostError,
    HostUnreachable,
    ImageError,
    MessageRefused,
    NotFound,
    PartitionError,
    TrustZoneError,
    UsageError,
    VambraceError,
)
from vambrace.image.bundle import Bundle, Part

_URL = re.compile(r"https://(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d{1,5})?")
MAX_JSON = 8 << 20
MAX_TOKEN = 1 << 20
POLL_SECONDS = 20
BLOCK = 1 << 20
WORTH_ASKING = 64 << 10

# What vambrace.host.problems calls them.
_KINDS: dict[str, type[VambraceError]] = {
    "not-found": NotFound,
    "capacity": CapacityError,
    "conflict": Conflict,
    "message-refused": MessageRefused,
    "image": ImageError,
    "configuration": ConfigError,
    "request": UsageError,
    "trustzone": TrustZoneError,
    "partition": PartitionError,
    "host": HostError,
    "internal": HostError,
}
# For answers that name no kind, as those of something between.
_STATUS: dict[int, type[HostError]] = {404: NotFound, 409: Conflict, 507: CapacityError}


@dataclass(frozen=True)
class DomainInfo:
    """What the host says about a Realm. The host's word only: nothing here is verified."""

    uuid: str
    name: str
    kind: str
    image: str
    state: str
    reason: str
    executed: bool
    instance: str
    measurement: str
    memory: int
    agent: str
    created: float
    raw: dict[str, Any]

    @property
    def final(self) -> bool:
        return self.raw.get("final") is True

    @classmethod
    def decode(cls, value: Any) -> DomainInfo:
        """Raises ``HostError`` where the answer is not one about a Realm."""
        if not isinstance(value, dict) or not UUID.fullmatch(str(value.get("uuid"))):
            raise HostError("the host's answer is not one about a Realm", hint="is this a vambrace host?")
        text = {key: plain(value.get(key) or "") for key in ("name", "image", "state", "reason", "agent")}
        instance = plain(value.get("instance") or "")
        measurement = plain(value.get("measurement") or "")
        memory, created = value.get("memory"), value.get("created")
        return cls(
            uuid=value["uuid"],
            kind=plain(value.get("class") or ""),
            executed=value.get("executed") is True,
            instance=instance,
            measurement=measurement,
            memory=memory if type(memory) is int else 0,
            created=float(created) if isinstance(created, int | float) else 0.0,
            raw=value,
            **text,
        )


class Host:
    """One host. Connections are kept and reused; close, or use it as a context manager.

    ``client_cert``, ``client_key`` and ``ca`` are paths of PEM files. Every call raises ``HostUnreachable``
    without a connection, and otherwise the error that the host names.
    """

    def __init__(self, url: str, client_cert: Path | str, client_key: Path | str, ca: Path | str) -> None:
        self.url = url.rstrip("/")
        if not _URL.fullmatch(self.url):
            raise UsageError(f"{url!r} is not a host's URL", hint="it looks like https://host.example:8443")
        self.tls = client_context(client_cert, client_key, ca)
        self._pool = urllib3.PoolManager(ssl_context=self.tls, retries=False, maxsize=4)

    @classmethod
    def current(cls, name: str | None = None, context: Context | None = None) -> Host:
        """The host called ``name``, or the user's current one."""
        entry = (context or Context()).host(name)[1]
        return cls(entry.url, entry.certificate, entry.key, entry.ca)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.clear()

    # The host itself

    def info(self) -> dict[str, Any]:
        """What the host says about itself: versions, capacity, platform."""
        return _mapping(self._json("GET", "/v1/host"))

    def partition(self) -> Partition:
        """Which domain has what for itself: the host's word."""
        return Partition.decode(self._json("GET", "/v1/partition"))

    def verify_partition(self) -> Verification:
        """Have the host check, from its kernel's numbers, that its domains are apart."""
        return Verification.decode(self._json("GET", "/v1/partition/verification", read_timeout=600))

    def usage(self) -> list[Usage]:
        """What its domains use at this moment."""
        return [Usage.decode(item) for item in _list(self._json("GET", "/v1/usage"), "domains")]

    def openapi(self) -> dict[str, Any]:
        """The description of the API."""
        return _mapping(self._json("GET", "/v1/openapi.json"))

    # Images

    def images(self) -> list[dict[str, Any]]:
        """The images that the host keeps."""
        return _list(self._json("GET", "/v1/images"), "images")

    def has_image(self, digest: str) -> bool:
        """Whether the host has the bundle with this SHA-256 (hexadecimal)."""
        return self._has(f"/v1/images/{digest}")

    def has_blob(self, digest: str) -> bool:
        """Whether an image of the host has the kernel, initrd or disk with this SHA-256 (hexadecimal)."""
        return self._has(f"/v1/blobs/{digest}")

    def send(self, bundle: Bundle, digest: str, progress: Progress = silent) -> None:
        """Send ``bundle``, whose file has this SHA-256, without the parts that the host has, or whole. Raises
        ``HostError``."""
        # Disks with the same contents are one blob.
        parts = {part.digest: part for part in bundle.parts if part.size >= WORTH_ASKING}
        try:
            if kept := [part for part in parts.values() if self.has_blob(part.digest)]:
                self.upload(bundle.path, digest, progress, without=kept)
                return
        except HostUnreachable:
            raise
        except VambraceError:
            # An image was deleted meanwhile, or is damaged, or the host is busy: all of that is no matter to a bundle
            # that is sent whole, and what is wrong with that the host says once more.
            pass
        self.upload(bundle.path, digest, progress)

    def upload(self, bundle: Path, digest: str, progress: Progress = silent, without: Sequence[Part] = ()) -> None:
        """Send a bundle's tar file, but for the parts ``without``, which the host has; the host checks its digest."""
        with bundle.open("rb") as file:
            body = _Upload(file, bundle.stat().st_size, without, progress)
            headers = {"Content-Length": str(body.length), "Content-Type": "application/octet-stream"}
            query = urlencode([("blob", f"{part.offset}:{part.digest}") for part in without], safe=":")
            path = f"/v1/images/{digest}{'?' if query else ''}{query}"
            self._request("PUT", path, body=body, headers=headers, read_timeout=600)

    def delete_image(self, digest: str) -> None:
        self._request("DELETE", f"/v1/images/{digest}")

    # Volumes

    def volumes(self) -> list[VolumeInfo]:
        """The disks that outlive their Realms, of all owners."""
        return [VolumeInfo.decode(item) for item in _list(self._json("GET", "/v1/volumes"), "volumes")]

    def create_volume(self, owner: str, name: str, size: int) -> VolumeInfo:
        """One of ``size`` bytes; the same again changes nothing. ``owner`` is a personalization value (hexadecimal)."""
        return VolumeInfo.decode(self._json("PUT", f"/v1/volumes/{owner}/{quote(name, '')}", json={"size": size}))

    def remove_volume(self, owner: str, name: str) -> None:
        """For ever; not while a Realm has it."""
        self._request("DELETE", f"/v1/volumes/{owner}/{quote(name, '')}")

    # Realms

    def create(self, uuid: str, name: str, image: str, nonce: bytes) -> DomainInfo:
        """Ask for a Realm of the bundle ``image``; repeating the same request changes nothing."""
        body = {"name": name, "image": image, "nonce": nonce.hex()}
        return DomainInfo.decode(self._json("PUT", f"/v1/domains/{uuid}", json=body))

    def domains(self) -> list[DomainInfo]:
        """The Realms of this host, those that have ended included."""
        return [DomainInfo.decode(item) for item in _list(self._json("GET", "/v1/domains"), "domains")]

    def domain(self, uuid: str, *, wait: int = 0, unless: str = "") -> DomainInfo:
        """A Realm's state; with ``wait``, up to so many seconds later, as soon as it is not ``unless``."""
        query = f"?{urlencode({'wait': wait, 'unless': unless})}" if wait else ""
        return DomainInfo.decode(self._json("GET", f"/v1/domains/{uuid}{query}", read_timeout=wait + 60))

    def wait(
        self,
        uuid: str,
        until: Callable[[DomainInfo], bool],
        *,
        timeout: float | None = None,
        progress: Progress = silent,
    ) -> DomainInfo:
        """Long-poll until ``until`` holds or the Realm ended. ``DomainError`` after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        info = self.domain(uuid)
        while not (until(info) or info.final):
            progress(info.state)
            left = POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline - time.monotonic())
            if left <= 0:
                raise DomainError(f"the Realm is still {info.state}", hint="see 'vambrace ps', or destroy it")
            info = self.domain(uuid, wait=max(1, int(left)), unless=info.state)
        return info

    def token(self, uuid: str) -> bytes:
        """The launch token: not verified."""
        return self._request("GET", f"/v1/domains/{uuid}/token", limit=MAX_TOKEN)

    def verdict(self, uuid: str, message: bytes) -> None:
        """Hand in the owner's signed yes or no (section 8)."""
        headers = {"Content-Type": 'application/cose; cose-type="cose-sign1"'}
        self._request("POST", f"/v1/domains/{uuid}/verdict", body=message, headers=headers)

    def destroy(self, uuid: str) -> None:
        self._request("DELETE", f"/v1/domains/{uuid}", read_timeout=120)

    def channel_url(self, uuid: str) -> str:
        """Where the WebSocket to the Realm's agent is."""
        return f"wss{self.url.removeprefix('https')}/v1/domains/{uuid}/channel"

    def console_url(self, uuid: str) -> str:
        """Where the WebSocket to a Normal VM's console is."""
        return f"wss{self.url.removeprefix('https')}/v1/domains/{uuid}/console"

    # One request

    def _has(self, path: str) -> bool:
        try:
            self._request("HEAD", path)
        except NotFound:
            return False
        return True

    def _json(self, method: str, path: str, **options: Any) -> Any:
        data = self._request(method, path, **options)
        try:
            return json.loads(data)
        except ValueError as error:
            raise HostError("the host's answer is not JSON", hint="is this a vambrace host?") from error

    def _request(
        self, method: str, path: str, *, limit: int = MAX_JSON, read_timeout: float = 60, **options: Any
    ) -> bytes:
        timeout = urllib3.Timeout(connect=10, read=read_timeout)
        try:
            response = self._pool.request(
                method, self.url + path, timeout=timeout, redirect=False, preload_content=False, **options
            )
            try:
                data = _read(response, limit)
            finally:
                response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(self.url, error) from error
        if not 200 <= response.status < 300:
            raise problem(response.status, data)
        return data


class _Upload:
    """A file as a request's body, but for some parts of it, that tells how much of it was read."""

    def __init__(self, file: BinaryIO, size: int, without: Sequence[Part], progress: Progress) -> None:
        self._file, self._progress = file, progress
        self._spans: list[tuple[int, int]] = []
        start = 0
        for part in sorted(without, key=lambda part: part.offset):
            self._spans.append((start, part.offset))
            start = part.offset + part.size
        self._spans.append((start, size))
        self.length = sum(end - start for start, end in self._spans)

    def __iter__(self) -> Iterator[bytes]:
        done = 0
        for start, end in self._spans:
            self._file.seek(start)
            while block := self._file.read(min(BLOCK, end - self._file.tell())):
                yield block
                done += len(block)
                self._progress("sending the image", done, self.length)
        self._progress("the host checks the image")


def client_context(client_cert: Path | str, client_key: Path | str, ca: Path | str) -> ssl.SSLContext:
    """TLS 1.3 towards a host's API: its certificate checked with ``ca``, ours presented."""
    try:
        tls = ssl.create_default_context(cafile=str(ca))
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        tls.load_cert_chain(str(client_cert), str(client_key))
    except (OSError, ssl.SSLError) as error:
        what = getattr(error, "filename", None) or f"{ca}, {client_cert} or {client_key}"
        raise ConfigError(
            f"the certificates for the host cannot be read ({what})",
            hint="hosts.toml names them",
        ) from error
    return tls


def unreachable(url: str, error: Exception) -> HostUnreachable:
    """The error for a connection that failed, with the reason that can be acted on."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return HostUnreachable(
            f"{url} is not the host that was expected (its certificate is another's)",
            hint="do not trust it, unless its operator says that it has a new certificate: hosts.toml names its ca",
        )
    if "_ALERT_" in text:
        # What a server says that does not like our side: in TLS 1.3 that is the certificate.
        return HostUnreachable(f"{url} does not accept our client certificate", hint="ask its operator for one")
    closed = any(isinstance(part, ConnectionError) for part in (error, *error.args))
    if closed and not isinstance(error, ConnectionRefusedError):
        # asyncio's TLS closes without saying the alert, so this is what a refused certificate looks like too.
        return HostUnreachable(
            f"{url} closed the connection without an answer",
            hint="it does so to client certificates that it does not accept; see hosts.toml",
        )
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # a TimeoutError to urllib3
    if isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError) and not refused:
        return HostUnreachable(f"{url} does not answer in time", hint="try again later, or ask its operator")
    return HostUnreachable(f"{url} cannot be reached", hint="is it up, and is this its URL? hosts.toml has it")


def problem(status: int, body: bytes) -> VambraceError:
    """The error of our tree that a host's answer means (RFC 9457)."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    details: dict[str, Any] = value if isinstance(value, dict) else {}
    message = plain(details.get("detail") or details.get("title") or f"the host answered {status}")
    hint = plain(details.get("hint") or "") or None
    kind = str(details.get("type", "")).rpartition("/")[2]
    cls = _KINDS.get(kind) or _STATUS.get(status, HostError)
    if issubclass(cls, HostError):
        return cls(message, hint=hint, status=status)
    return cls(message, hint=hint)


def _read(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    data = bytearray()
    for block in response.stream(1 << 16):
        data += block
        if len(data) > limit:
            response.close()
            raise HostError(f"the host answered more than {limit} bytes", hint="is this a vambrace host?")
    return bytes(data)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HostError("the host's answer is not an object", hint="is this a vambrace host?")
    return value


def _list(value: Any, key: str) -> list[dict[str, Any]]:
    items = value.get(key) if isinstance(value, dict) else value
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise HostError(f"the host's answer is not a list of {key}", hint="is this a vambrace host?")
    return items
