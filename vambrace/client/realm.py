"""A Realm, as its user sees it: from the bundle over the verified token and the verdict to its end."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import math
import os
import time
import uuid as uuids
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vambrace.advice import Advice, advise
from vambrace.attest.owner import Bounds, OwnerIdentity
from vambrace.attest.token import decode_evidence
from vambrace.attest.verify import VerifiedRealm
from vambrace.client import changes, names, results, traffic, zones
from vambrace.client.changes import Change
from vambrace.client.channel import OTHER_VERSION, Channel
from vambrace.client.context import Context, DomainState
from vambrace.client.host import DomainInfo, Host, plain
from vambrace.client.progress import Progress, silent
from vambrace.client.results import ResultFile
from vambrace.client.traffic import Traffic
from vambrace.client.trust import Expected, Trust
from vambrace.client.zones import ZoneStats
from vambrace.config import DomainConfig, check_domain_name
from vambrace.errors import (
    ChannelClosed,
    ConfigError,
    Conflict,
    DomainError,
    HostError,
    HostUnreachable,
    NotFound,
    OwnerMismatch,
    UsageError,
    VambraceError,
    VerificationError,
)

LOAD_SECONDS = 900.0
START_SECONDS = 300.0
END_SECONDS = 120.0
POLL_SECONDS = 1.0
ADVICE_SECONDS = 10.0
LOADING = ("created", "loading")
OnLog = Callable[[str, bytes], None]


class Realm:
    """One Realm on one host. As a context manager it destroys the Realm when left, unless it was detached.

    ``run`` does all of it; ``create``, ``verify``, ``approve`` or ``refuse``, ``start`` are its steps.
    """

    def __init__(
        self, host: Host, owner: OwnerIdentity, trust: Trust, context: Context, uuid: str, config: DomainConfig
    ) -> None:
        self.host, self.owner, self.trust = host, owner, trust
        self.uuid, self.config = uuid, config
        self.verified: VerifiedRealm | None = None
        self._context = context
        self._channel: Channel | None = None
        self._detached = False

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
    ) -> Realm:
        """Send the bundle if the host has not got it, and ask for a Realm of it (401).

        What is not given is the user's current one. ``expected`` is the launch measurement to insist on,
        computed from the bundle if not given. Raises ``UsageError`` (name), ``ImageError``, ``OwnerMismatch``,
        ``HostError``.
        """
        from vambrace.image import Bundle

        if name is not None:
            check_domain_name(name)
        context = context or Context()
        owner = owner or OwnerIdentity.load(context.owner)
        trust = trust or Trust.current(context=context)
        host = host or Host.current(context=context)
        path = Path(bundle)
        progress("checking the image")
        opened = Bundle.open(path)
        config = opened.config
        if config.owner_spki != owner.spki:
            raise OwnerMismatch(
                f"{path} is another owner's image",
                hint="build it with your own certificate ('vambrace owner show')",
            )
        measurement = expected or opened.measurement()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        state = DomainState(
            uuid=str(uuids.uuid4()),
            name=name or config.name,
            host=host.url,
            image=digest,
            nonce=os.urandom(32).hex(),
            measurement=measurement.hex(),
            created=time.time(),
        )
        ours, asked = not host.has_image(digest), False
        try:
            if ours:
                host.upload(path, digest, progress)
            context.save_domain(state, config=config.encode())
            progress("asking for the Realm")
            asked = True
            host.create(state.uuid, state.name, digest, bytes.fromhex(state.nonce))
        except BaseException as error:
            if asked and (isinstance(error, HostUnreachable) or not isinstance(error, VambraceError)):
                # No answer, or Ctrl-C, say: the host may have made the Realm.
                with contextlib.suppress(VambraceError):
                    host.destroy(state.uuid)
            context.forget_domain(state.uuid)
            if ours:
                # A Realm that is refused leaves no image behind. Somebody else's Realm keeps it, if it has one.
                with contextlib.suppress(VambraceError):
                    host.delete_image(digest)
            raise
        return cls(host, owner, trust, context, state.uuid, config)

    @classmethod
    def attach(
        cls,
        realm: str,
        *,
        host: Host | None = None,
        owner: OwnerIdentity | None = None,
        trust: Trust | None = None,
        context: Context | None = None,
    ) -> Realm:
        """A Realm that was started before, from here, by its name or identifier. Leaving it ends nothing."""
        context = context or Context()
        host = host or Host.current(context=context)
        uuid = names.resolve(realm, context, host)
        config = DomainConfig.parse(context.domain_file(uuid, "config.json"))
        owner = owner or OwnerIdentity.load(context.owner)
        found = cls(host, owner, trust or Trust.current(context=context), context, uuid, config)
        found._detached = True
        return found

    @classmethod
    def run(
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
    ) -> Realm:
        """Create, verify, approve and start a Realm; the arguments are those of ``create``.

        A Realm whose token is not to be trusted is refused, destroyed unexecuted, and the error is raised.
        """
        realm = cls.create(
            bundle,
            host=host,
            owner=owner,
            trust=trust,
            context=context,
            name=name,
            expected=expected,
            progress=progress,
        )
        try:
            realm.verify(progress)
            realm.approve()
            realm.start(progress)
        except BaseException:
            realm.abandon()
            raise
        return realm

    def __enter__(self) -> Realm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if not self._detached:
            self.abandon()

    def detach(self) -> None:
        """Let the Realm go on after this object."""
        self._detached = True

    def close(self) -> None:
        """Close the channel, if one is open."""
        if self._channel:
            self._channel.close()
            self._channel = None

    def abandon(self) -> None:
        """Destroy the Realm if it still lives; silent if that fails (the deadline ends it)."""
        self.close()
        with contextlib.suppress(VambraceError):
            if not self.info().final:
                self.host.destroy(self.uuid)

    # What is known

    @property
    def state(self) -> DomainState:
        return self._context.domain(self.uuid)

    @property
    def expected(self) -> Expected:
        measurement = bytes.fromhex(self.state.measurement)
        config = self.config
        required = config.cache is not None and config.cache.required
        return Expected(measurement, self.owner.personalization(), config.hash, cache_required=required)

    def info(self) -> DomainInfo:
        """What the host says of it."""
        return self.host.domain(self.uuid)

    def token(self) -> bytes:
        """The launch token, as it was verified and kept."""
        return self._context.domain_file(self.uuid, "token.cbor")

    # 403: the verdict

    def verify(self, progress: Progress = silent) -> VerifiedRealm:
        """Wait for the launch token and verify it.

        Where it is not to be trusted, the Realm is refused and the ``VerificationError`` raised.
        """
        info = self.host.wait(
            self.uuid, lambda info: info.state not in LOADING, timeout=LOAD_SECONDS, progress=progress
        )
        if info.final:
            raise self._ended(info)
        token = self.host.token(self.uuid)
        state = self.state
        try:
            seen = self._context.tokens_seen(self.uuid)
            verified = self.trust.launch(token, bytes.fromhex(state.nonce), self.expected, seen=seen)
        except VerificationError:
            self.refuse(token)
            raise
        self._context.save_domain(dataclasses.replace(state, instance=verified.instance.hex()), token=token)
        self.verified = verified
        return verified

    def approve(self) -> None:
        """Sign and send the yes. Only for a token that ``verify`` accepted."""
        if self.verified is None:
            raise UsageError("a Realm is approved only after its token was verified", hint="call verify first")
        message = self.owner.sign_verdict(self.verified.instance, self.verified.token_sha256, yes=True)
        self.host.verdict(self.uuid, message)

    def refuse(self, token: bytes) -> DomainInfo:
        """Sign and send the no for ``token``, and wait until the Realm is destroyed; returns its end."""
        try:
            instance = decode_evidence(token).realm.instance
            message = self.owner.sign_verdict(instance, hashlib.sha256(token).digest(), yes=False)
            self.host.verdict(self.uuid, message)
        except VambraceError:
            # A token that cannot even be read: a no needs no proof, silence would do as well.
            with contextlib.suppress(VambraceError):
                self.host.destroy(self.uuid)
        return self.host.wait(self.uuid, lambda info: info.final, timeout=END_SECONDS)

    # 405: running

    def start(self, progress: Progress = silent) -> None:
        """Wait until the Realm runs, connect, and start its applications."""
        info = self.host.wait(self.uuid, lambda info: info.state == "running", timeout=START_SECONDS, progress=progress)
        if info.final:
            raise self._ended(info)
        progress("connecting to the agent")
        self._ask("start")

    def attest(self) -> VerifiedRealm:
        """Fresh evidence: a new connection, with a new nonce and a token for it."""
        self.close()
        return self._connect().realm

    def status(self) -> dict[str, Any]:
        """``state``, and for each application ``name``, ``state``, ``exit_code``, ``restarts``."""
        reply, _ = self._ask("status")
        return {"state": reply.get("state"), "applications": _objects(reply, "applications")}

    def encrypt(self, application: str, percent: int, progress: Progress = silent) -> None:
        """Set the encrypted percentage of an application's zone (or of ``system``), 0 to 100.

        Returns when the invariant holds at the new value. The change goes on if nobody waits for it any more:
        ``change`` looks at it, ``follow_change`` waits for it, and so does the same order once more. Raises
        ``DomainError``: refused, or not possible.
        """
        zone = self.config.zone_of(application)

        def sign(instance: bytes, counter: int) -> bytes:
            return self.owner.sign_percent(instance, zone, percent, counter)

        reply, counter = self._order("encrypt", sign)
        change = changes.check(self.config, zone, reply.get("change"))
        if change is None or change.counter != counter or change.percent != percent:
            raise DomainError("the Realm confirmed another order", hint="see 'vambrace stats'")
        changes.follow(change, self.change, progress)

    def change(self, application: str) -> Change | None:
        """The last order for an application's zone and how far it is; None if there was none."""
        zone = self.config.zone_of(application)
        return changes.check(self.config, zone, self._ask("change", zone=zone)[0].get("change"))

    def follow_change(self, application: str, progress: Progress = silent) -> Change | None:
        """Wait for the last order for an application's zone, as ``encrypt`` does; None if there was none."""
        change = self.change(application)
        return change and changes.follow(change, self.change, progress)

    def auto(self, application: str, bounds: Bounds | None, progress: Progress = silent) -> None:
        """Let the host choose the percentage of an application's zone, within ``bounds``; None: not any more.

        Returns when the percentage is within them. It stays what it is when they end; ``encrypt`` ends them, too.
        ``stats`` shows how it is held. Raises ``DomainError``.
        """
        zone = self.config.zone_of(application)

        def sign(instance: bytes, counter: int) -> bytes:
            return self.owner.sign_bounds(instance, zone, bounds, counter)

        reply, _ = self._order("auto", sign)
        held = zones.check_auto(self.config.zones[zone], self._of_zones(reply.get("auto"))[zone])
        if zones.bounds_of(held) != bounds:
            raise DomainError("the Realm confirmed other bounds", hint="see 'vambrace stats'")
        while bounds is not None:
            now = self.stats()[zone]
            if (state := now["auto"]) is None or zones.bounds_of(state) != bounds:
                raise DomainError(f"another order for {application} came after this one", hint="see 'vambrace stats'")
            if bounds.lowest <= now["percent"] <= bounds.highest:
                return
            if error := state["error"]:
                raise DomainError(f"{application} is still at {now['percent']} %: {error}", hint="the host tries again")
            progress(f"bringing {application} within its bounds")
            time.sleep(changes.LOOK_SECONDS)

    def stats(self) -> list[ZoneStats]:
        """The statistics of each zone, in the configuration's order.

        Raises ``DomainError`` for what no window of this configuration can have counted.
        """
        reply, _ = self._ask("stats")
        found, autos = self._of_zones(_objects(reply, "zones")), self._of_zones(reply.get("auto"))
        return [zones.check(*each) for each in zip(self.config.zones, found, autos, strict=True)]

    def messages(self) -> list[Traffic]:
        """What has gone through each endpoint of the image so far, by the other Realm. Raises ``DomainError``."""
        if not self.config.endpoints:
            return []
        reply, _ = self._ask("messages")
        return traffic.check(self.config.endpoints, reply.get("messages"))

    def advise(self, seconds: float = ADVICE_SECONDS, progress: Progress = silent) -> list[Advice]:
        """What each percentage would cost each zone, from ``seconds`` of sampling, which slows the Realm down a little.

        Raises ``DomainError`` and what talking to the Realm raises.
        """
        self._ask("sample", on=True, seconds=math.ceil(seconds))
        try:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                progress(f"sampling, {math.ceil(left)} s left")
                time.sleep(min(1.0, left))
        finally:
            # Also after Ctrl-C: a Realm must not stay slow because nobody waits any more.
            self._ask("sample", on=False)
        reply, _ = self._ask("reuse")
        sampled = self._of_zones(_objects(reply, "zones"))
        stats = self.stats()
        fault = reply.get("fault_ns")
        return [advise(known["name"], known, found, fault) for known, found in zip(stats, sampled, strict=True)]

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
        return [ResultFile.decode(item) for item in _objects(self._ask("results")[0], "results")]

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

    # 406: the end

    def finish(
        self, directory: Path | str | None = None, *, on_log: OnLog | None = None, progress: Progress = silent
    ) -> DomainInfo:
        """Wait until all applications have ended, take the results, let the Realm end, and wait for that.

        Without a ``directory`` the results are given up. Raises ``DomainError`` if the Realm failed.
        """
        offsets = {application.name: 0 for application in self.config.applications}
        taken = directory is None
        succeeded = False
        try:
            while True:
                status = self.status()
                for name in offsets if on_log else ():
                    offsets[name] = self._drain(name, offsets[name], on_log)
                if status["state"] in ("succeeded", "failed"):
                    break
                progress(_summary(status))
                time.sleep(POLL_SECONDS)
            succeeded = status["state"] == "succeeded"
            if succeeded and directory is not None:
                self.download(directory, progress)
                taken = True
            self.collected()
        except (ChannelClosed, Conflict, NotFound):
            if not self.info().final:
                self.host.wait(self.uuid, lambda info: info.final, timeout=END_SECONDS)
        self.close()
        progress("waiting for its end")
        info = self.host.wait(self.uuid, lambda info: info.final, timeout=END_SECONDS)
        if info.state != "succeeded":
            raise self._ended(info)
        if not taken:
            raise DomainError("the Realm ended before its results were taken", hint="raise collect_seconds")
        if not succeeded:
            # The host says so; only the agent's word, on the attested channel, counts.
            raise DomainError("the Realm ended before its agent said that it succeeded", hint="start it again")
        return info

    def destroy(self) -> DomainInfo:
        """End the Realm now; returns when nothing of it is left on the host."""
        self.close()
        self.host.destroy(self.uuid)
        return self.host.wait(self.uuid, lambda info: info.final, timeout=END_SECONDS)

    # The channel

    def _connect(self) -> Channel:
        """The open channel, or a new one: the agent may need a moment until it listens."""
        if self._channel:
            return self._channel
        state = self.state
        if not state.instance:
            raise UsageError("this Realm was never approved", hint="'vambrace run' starts one")
        instance, expected = bytes.fromhex(state.instance), self.expected

        def verify(token: bytes, nonce: bytes, spki: bytes) -> VerifiedRealm:
            return self.trust.channel(token, nonce, spki, instance, expected)

        owner = self.owner
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._channel = Channel(self.host, self.uuid, owner.certificate_path, owner.key_path, verify)
                return self._channel
            except Conflict as error:
                info = self.info()
                raise (self._ended(info) if info.final else error) from error
            except (HostError, ChannelClosed) as error:
                again = isinstance(error, ChannelClosed) or error.status in (429, 503)
                if not again or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def _ask(self, operation: str, **arguments: Any) -> tuple[dict[str, Any], bytes]:
        """A request that may be repeated: once more, on a new channel, where the first one was cut."""
        fresh = self._channel is None
        try:
            return self._connect().request(operation, **arguments)
        except ChannelClosed:
            self.close()
            if fresh:
                raise
        return self._connect().request(operation, **arguments)

    def _order(self, operation: str, sign: Callable[[bytes, int], bytes]) -> tuple[dict[str, Any], int]:
        """Send what ``sign`` makes for this instance and a new counter; returns the reply and the counter.

        Where the channel is cut, once more with another counter: the first order may have arrived.
        """
        self._connect()
        try:
            return self._send_order(operation, sign)
        except ChannelClosed:
            # Perhaps it had closed long ago.
            self.close()
            return self._send_order(operation, sign)

    def _send_order(self, operation: str, sign: Callable[[bytes, int], bytes]) -> tuple[dict[str, Any], int]:
        counter = self._context.next_counter(self.uuid)
        message = sign(bytes.fromhex(self.state.instance), counter)
        reply, _ = self._connect().request(operation, message=base64.b64encode(message).decode())
        return reply, counter

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
        """Raises ``ConfigError`` unless the image has an application called ``name``."""
        known = [application.name for application in self.config.applications]
        if name not in known:
            raise ConfigError(f"{name}: no such application", hint=f"there are {', '.join(known)}")

    def _ended(self, info: DomainInfo) -> DomainError:
        unexecuted = "" if info.executed else "; it never executed"
        return DomainError(
            f"the Realm is {info.state}: {info.reason or 'no reason given'}{unexecuted}",
            hint="'vambrace ps --all' shows how it ended",
        )


def _objects(reply: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = reply.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DomainError(f"the agent's reply has no {key}", hint=OTHER_VERSION)
    return items


def _summary(status: dict[str, Any]) -> str:
    return ", ".join(f"{plain(app.get('name'))} {plain(app.get('state'))}" for app in status["applications"])
