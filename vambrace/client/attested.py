"""A domain that answers for itself: its token, its agent over attested TLS, its logs and results."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from vambrace.attest.events import Event, verify_events
from vambrace.attest.owner import OwnerIdentity
from vambrace.attest.verify import VerifiedRealm
from vambrace.checks import check_domain_name
from vambrace.classes import CLASSES
from vambrace.client import files, results, zones
from vambrace.client.channel import OTHER_VERSION, Channel, Verify
from vambrace.client.context import Context
from vambrace.client.domain import (
    END_SECONDS,
    LOAD_SECONDS,
    LOADING,
    POLL_SECONDS,
    START_SECONDS,
    Domain,
    ask_for,
    found,
)
from vambrace.client.host import DomainInfo, Host
from vambrace.client.progress import Progress, silent
from vambrace.client.results import ResultFile
from vambrace.client.trust import Expected, Trust
from vambrace.client.zones import ZoneStats
from vambrace.config import DomainConfig
from vambrace.errors import (
    ChannelClosed,
    Conflict,
    DomainError,
    HostError,
    NotFound,
    OwnerMismatch,
    UsageError,
)

#: More than all applications together can bring about.
MAX_EVENTS = 20_000

if TYPE_CHECKING:
    from vambrace.client.tunnel import Address, Forward, Told, Tunnel

T = TypeVar("T")

OnLog = Callable[[str, bytes], None]


class Attested(Domain):
    """``create``, ``verify`` and ``start`` are what a Realm and a Secure VM have in common.

    ``clock_late`` is by how many seconds its clock may be late, once it was started here.
    """

    kinds = tuple(kind.name for kind in CLASSES.values() if kind.attested)

    def __init__(
        self, host: Host, owner: OwnerIdentity, trust: Trust, context: Context, uuid: str, config: DomainConfig
    ) -> None:
        super().__init__(host, context, uuid, config)
        self.owner, self.trust = owner, trust
        self.verified: VerifiedRealm | None = None
        self.clock_late = 0.0
        self._channel: Channel | None = None
        self._tunnel: Tunnel | None = None
        self._beginning = threading.Lock()

    @classmethod
    def create(
        cls,
        bundle: Path | str,
        *,
        host: Host | None = None,
        owner: OwnerIdentity | None = None,
        trust: Trust | None = None,
        context: Context | None = None,
        name: str | None = None,
        expected: bytes | None = None,
        progress: Progress = silent,
    ) -> Self:
        """Send the bundle if the host has not got it, and ask for a domain of it (401).

        What is not given is the user's current one. ``expected`` is the launch measurement to insist on,
        computed from the bundle if not given. Raises ``UsageError`` (name, class), ``ImageError``, ``OwnerMismatch``,
        ``HostError``.
        """
        from vambrace.image import Bundle

        if name is not None:
            check_domain_name(name)
        context = context or Context()
        owner = owner or OwnerIdentity.load(context.owner)
        trust = trust or Trust.current(context=context)
        host = host or Host.current(context=context)
        progress("checking the image")
        opened = Bundle.open(bundle)
        if opened.config.kind.name not in cls.kinds:
            raise UsageError(f"{bundle} is the image of a {opened.config.kind}", hint="'vambrace run' starts any")
        if opened.config.owner_spki != owner.spki:
            raise OwnerMismatch(
                f"{bundle} is another owner's image",
                hint="build it with your own certificate ('vambrace owner show')",
            )
        measurement = expected or opened.measurement()
        uuid = ask_for(opened, measurement, host=host, context=context, name=name, progress=progress)
        return cls(host, owner, trust, context, uuid, opened.config)

    @classmethod
    def attach(
        cls,
        realm: str,
        *,
        host: Host | None = None,
        owner: OwnerIdentity | None = None,
        trust: Trust | None = None,
        context: Context | None = None,
    ) -> Self:
        """One that was started before, from here, by its name or identifier. Leaving it ends nothing."""
        context = context or Context()
        host = host or Host.current(context=context)
        uuid, config = found(realm, host, context, cls.kinds)
        owner = owner or OwnerIdentity.load(context.owner)
        its = cls(host, owner, trust or Trust.current(context=context), context, uuid, config)
        its._detached = True
        return its

    def close(self) -> None:
        """Close the channel, if one is open, and what goes to published ports."""
        self._hang_up()
        with self._beginning:
            tunnel, self._tunnel = self._tunnel, None
        if tunnel:
            tunnel.close()

    def _hang_up(self) -> None:
        if self._channel:
            self._channel.close()
            self._channel = None

    @property
    def expected(self) -> Expected:
        measurement = bytes.fromhex(self.state.measurement)
        config = self.config
        required = config.cache is not None and config.cache.required
        return Expected(measurement, self.owner.personalization(), config.hash, cache_required=required)

    def token(self) -> bytes:
        """The launch token, as it was verified and kept."""
        return self._context.domain_file(self.uuid, "token.cbor")

    def _loaded(self, progress: Progress) -> DomainInfo:
        """Wait for the launch token. Raises ``DomainError``: it has ended."""
        info = self.host.wait(
            self.uuid, lambda info: info.state not in LOADING, timeout=LOAD_SECONDS, progress=progress
        )
        if info.final:
            raise self.ended(info)
        return info

    def _verify(self, token: bytes) -> VerifiedRealm:
        """Judge the launch token, and keep it. Raises ``VerificationError``."""
        state = self.state
        seen = self._context.tokens_seen(self.uuid)
        verified = self.trust.launch(token, bytes.fromhex(state.nonce), self.expected, seen=seen)
        self._context.save_domain(dataclasses.replace(state, instance=verified.instance.hex()), token=token)
        self.verified = verified
        return verified

    # 405: running

    def start(self, progress: Progress = silent) -> None:
        """Wait until the Realm runs, connect, and start its applications."""
        super().start(progress)
        progress("waiting for its agent")
        self._set_clock()
        self._ask("start")

    def _set_clock(self) -> None:
        """Our time is the Realm's: late by no more than the reply took, so that nobody holds it back unseen."""
        self._connect()
        sent = time.monotonic()
        self._ask("clock", time=time.time_ns())
        self.clock_late = time.monotonic() - sent

    def stop(self, application: str = "") -> None:
        """Ask ``application``, or all of them, to end: by its stop signal, and after its time without asking."""
        if application:
            self.check_application(application)
        self._ask("stop", **({"application": application} if application else {}))

    def attest(self) -> VerifiedRealm:
        """Fresh evidence: a new connection, with a new nonce and a token for it."""
        self._hang_up()
        return self._connect().realm

    def events(self, verified: VerifiedRealm | None = None) -> list[Event]:
        """What has happened from the launch until ``verified`` (of ``attest``; fresh evidence if not given) was made.

        Raises ``EventsMismatch``: the log is not what the evidence proves.
        """
        verified = verified or self.attest()
        log: list[Event] = []
        count = 1
        while len(log) < min(count, MAX_EVENTS):
            reply, _ = self._ask("events", first=len(log))
            found, total = objects(reply, "events"), reply.get("count")
            if type(total) is not int or not (found or total <= len(log)):
                raise DomainError("the agent's reply has no events", hint=OTHER_VERSION)
            log += map(Event.decode, found)
            count = total
        return verify_events(verified.rems, verified.hash_algorithm, log)

    def status(self) -> dict[str, Any]:
        """``state``, and for each application ``name``, ``state``, ``exit_code``, ``restarts``; of one whose image
        has a health check ``health``, which is "starting", "healthy" or "unhealthy"."""
        reply, _ = self._ask("status")
        return {"state": reply.get("state"), "applications": objects(reply, "applications")}

    def stats(self) -> list[ZoneStats]:
        """The statistics of each zone, in the configuration's order.

        Raises ``DomainError`` for what no window of this configuration can have counted.
        """
        reply, _ = self._ask("stats")
        found, autos = self._of_zones(objects(reply, "zones")), self._of_zones(reply.get("auto"))
        return [zones.check(*each) for each in zip(self.config.zones, found, autos, strict=True)]

    def logs(self, application: str, offset: int = 0) -> tuple[int, bytes, bool]:
        """Output from ``offset`` on: where to go on, the bytes, and whether that is all there will be.

        At most 256 KiB at once; what is too old to be kept is skipped.
        """
        reply, data = self._ask("logs", application=application, offset=offset)
        start, end = reply.get("offset"), reply.get("end")
        if type(start) is not int or type(end) is not int:
            raise DomainError("the agent's reply has no offset", hint=OTHER_VERSION)
        done = start + len(data) >= end and reply.get("state") in ("succeeded", "failed")
        return start + len(data), data, done

    def follow(self, application: str, poll: float = POLL_SECONDS) -> Iterator[bytes]:
        """Output as it comes, until the application or the Realm has ended."""
        self.check_application(application)
        offset, done = 0, False
        while not done:
            try:
                offset, data, done = self.logs(application, offset)
            except (ChannelClosed, NotFound, Conflict):
                if self.info().final:
                    return
                raise
            if data:
                yield data
            elif not done:
                time.sleep(poll)

    def results(self) -> list[ResultFile]:
        """The results that are there now."""
        return [ResultFile.decode(item) for item in objects(self._ask("results")[0], "results")]

    def download(self, directory: Path | str, progress: Progress = silent) -> list[Path]:
        """Fetch every result into ``directory``, as ``<application>/<file>``; resumes where it was cut."""
        found = self.results()
        directory, memory = Path(directory), {zone.name: zone.memory for zone in self.config.zones}
        return [
            results.download(file, directory, self.uuid, self._fetch, memory.get(file.application, 0), progress)
            for file in found
        ]

    def collected(self) -> None:
        """Say that all results were taken: the Realm may end."""
        self._ask("collected")

    # Files

    def put_file(self, source: Path | str, place: str, progress: Progress = silent) -> int:
        """Send a file to ``place``, ``APPLICATION:PATH``; its size. Resumes where it was cut. Raises ``UsageError``,
        ``DomainError``, and what talking to the domain raises."""
        return files.put(Path(source), self._file(place), self._ask, progress)

    def get_file(self, place: str, target: Path | str | None = None, progress: Progress = silent) -> Path:
        """Fetch a file, by default into one of its name; where it is then. Resumes and raises as ``put_file``."""
        there = self._file(place)
        name = there.name if results.safe(there.name) else "file"
        here = Path(name if target is None else target)
        files.get(there, here, self.uuid, self._ask, self._room(there.application), progress)
        return here

    def list_files(self, place: str) -> tuple[list[files.FileInfo], bool]:
        """What is in a folder, and whether there is more than that. Raises as ``put_file``."""
        return files.listing(self._file(place), self._ask)

    def _file(self, place: str) -> files.Place:
        found = files.Place.parse(place)
        self.check_application(found.application)
        return found

    def _room(self, application: str) -> int:
        """The most bytes that any file of an application can have."""
        memory = self.config.zones[self.config.zone_of(application)].memory
        storage = self.config.storage
        scratch, volumes = (storage.scratch, storage.volumes) if storage else ((), ())
        sizes = [each.size for each in scratch if each.application == application]
        sizes += [volume.size for volume in volumes if volume.application == application]
        return max(memory, *sizes, 0)

    # Published ports

    def connect(self, port: int) -> socket.socket:
        """A connection to a port that an application publishes, as a blocking socket of a pair.

        What goes through it is encrypted for the domain whose evidence was verified, over a connection that all of them
        share; where it is cut, the socket sees a reset. Raises ``UsageError`` (not published), ``DomainError`` (nobody
        serves there), ``HostError``, ``VerificationError``.
        """
        self.check_port(port)
        return self._reach(lambda tunnel: tunnel.socket(port))

    def forward(self, port: int, listen: Address = ("127.0.0.1", 0), told: Told = lambda error: None) -> Forward:
        """Listen on this machine for clients of a published port, until the result or this object is closed.

        The connection is made, and evidence verified, before anybody listens. ``told`` hears, in another thread, why a
        client was refused. Raises as ``connect``, and ``UsageError`` where it cannot listen.
        """
        from vambrace.client.tunnel import Forward

        self.check_port(port)
        self._reach(lambda tunnel: tunnel.streams())
        return Forward(self.tunnel, port, listen, told)

    def check_port(self, port: int) -> None:
        """Raises ``UsageError`` unless an application of the image publishes ``port``."""
        known = [each.port for application in self.config.applications for each in application.ports]
        if port not in known:
            said = f"it publishes {', '.join(map(str, known))}" if known else "name it in the manifest: publish"
            raise UsageError(f"port {port} is not published", hint=said)

    @property
    def tunnel(self) -> Tunnel:
        """What connects to published ports, in a thread of its own; begun when it is first needed."""
        from vambrace.client.pipe import Pipe
        from vambrace.client.tunnel import Tunnel

        with self._beginning:
            if self._tunnel is None:
                verify, owner = self._judge(), self.owner
                self._tunnel = Tunnel(lambda: Pipe.open(self.host, self.uuid, *owner.channel_paths, verify))
            return self._tunnel

    def _reach(self, work: Callable[[Tunnel], Coroutine[Any, Any, T]]) -> T:
        """Do it in the tunnel; what fails because the domain has ended, says so."""
        try:
            return self.tunnel.do(work(self.tunnel))
        except (Conflict, ChannelClosed) as error:
            info = self.info()
            raise (self.ended(info) if info.final else error) from error

    # The channel

    def _connect(self) -> Channel:
        """The open channel, or a new one: the agent may need a moment until it listens."""
        if self._channel:
            return self._channel
        verify, owner = self._judge(), self.owner
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._channel = Channel(self.host, self.uuid, *owner.channel_paths, verify)
                return self._channel
            except Conflict as error:
                info = self.info()
                if info.state == "destroying":  # in a moment it can say why
                    info = self.host.wait(self.uuid, lambda info: info.final, timeout=END_SECONDS)
                raise (self.ended(info) if info.final else error) from error
            except (HostError, ChannelClosed) as error:
                again = isinstance(error, ChannelClosed) or error.status in (429, 503)
                if not again or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def _judge(self) -> Verify:
        """What evidence over a channel is held to. Raises ``UsageError``."""
        state = self.state
        if not state.instance:
            raise UsageError("this Realm was never approved", hint="'vambrace run' starts one")
        instance, expected = bytes.fromhex(state.instance), self.expected

        def verify(token: bytes, nonce: bytes, spki: bytes) -> VerifiedRealm:
            return self.trust.channel(token, nonce, spki, instance, expected)

        return verify

    def _ask(self, operation: str, **arguments: Any) -> tuple[dict[str, Any], bytes]:
        """A request that may be repeated: once more, on a new channel, where the first one was cut."""
        fresh = self._channel is None
        try:
            return self._connect().request(operation, **arguments)
        except ChannelClosed:
            self._hang_up()
            if fresh:
                raise
        return self._connect().request(operation, **arguments)

    def _of_zones(self, items: Any) -> list[Any]:
        """What the agent says of each zone."""
        if not isinstance(items, list) or len(items) != len(self.config.zones):
            raise DomainError("the Realm reports other zones than its configuration has", hint=OTHER_VERSION)
        return items

    def _fetch(self, application: str, path: str, offset: int) -> tuple[int, bytes]:
        reply, data = self._ask("result", application=application, path=path, offset=offset)
        size = reply.get("size")
        if type(size) is not int or reply.get("offset") != offset:
            raise DomainError("the agent's reply is not the part that was asked for", hint=OTHER_VERSION)
        return size, data

    def _drain(self, application: str, offset: int, on_log: OnLog | None) -> int:
        while True:
            offset, data, _ = self.logs(application, offset)
            if not data or on_log is None:
                return offset
            on_log(application, data)

    def check_application(self, name: str) -> None:
        """Raises ``UsageError`` unless the image has an application called ``name``."""
        known = [application.name for application in self.config.applications]
        if name not in known:
            raise UsageError(f"{name}: no such application", hint=f"there are {', '.join(known)}")

def objects(reply: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = reply.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DomainError(f"the agent's reply has no {key}", hint=OTHER_VERSION)
    return items
