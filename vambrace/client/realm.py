"""A Realm, as its user sees it: from the bundle over the verified token and the verdict to its end."""

from __future__ import annotations

import base64
import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vambrace.advice import Advice, advise
from vambrace.attest.owner import Bounds, OwnerIdentity
from vambrace.attest.token import decode_evidence
from vambrace.attest.verify import VerifiedRealm
from vambrace.classes import REALM
from vambrace.client import changes, traffic, zones
from vambrace.client.attested import Attested, OnLog, objects
from vambrace.client.changes import Change
from vambrace.client.context import Context
from vambrace.client.domain import END_SECONDS, POLL_SECONDS
from vambrace.client.host import DomainInfo, Host
from vambrace.client.progress import Progress, silent
from vambrace.client.said import plain
from vambrace.client.traffic import Traffic
from vambrace.client.trust import Trust
from vambrace.errors import ChannelClosed, Conflict, DomainError, NotFound, UsageError, VambraceError, VerificationError

ADVICE_SECONDS = 10.0


class Realm(Attested):
    """One Realm on one host. As a context manager it destroys the Realm when left, unless it was detached.

    ``run`` does all of it; ``create``, ``verify``, ``approve`` or ``refuse``, ``start`` are its steps.
    """

    kinds = (REALM.name,)

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

    # 403: the verdict

    def verify(self, progress: Progress = silent) -> VerifiedRealm:
        """Wait for the launch token and verify it.

        Where it is not to be trusted, the Realm is refused and the ``VerificationError`` raised.
        """
        self._loaded(progress)
        token = self.host.token(self.uuid)
        try:
            return self._verify(token)
        except VerificationError:
            self.refuse(token)
            raise

    def approve(self) -> None:
        """Sign and send the yes. Only for a token that ``verify`` accepted."""
        if self.verified is None:
            raise UsageError("a Realm is approved only after its token was verified", hint="call verify first")
        message = self.owner.sign_verdict(self.verified.instance, self.verified.token_digest, yes=True)
        self.host.verdict(self.uuid, message)

    def refuse(self, token: bytes) -> DomainInfo:
        """Sign and send the no for ``token``, and wait until the Realm is destroyed; returns its end."""
        try:
            instance = decode_evidence(token).realm.instance
            message = self.owner.sign_verdict(instance, self.config.suite.digest(token), yes=False)
            self.host.verdict(self.uuid, message)
        except VambraceError:
            # A token that cannot even be read: a no needs no proof, silence would do as well.
            with contextlib.suppress(VambraceError):
                self.host.destroy(self.uuid)
        return self.host.wait(self.uuid, lambda info: info.final, timeout=END_SECONDS)

    # 405: running

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
        sampled = self._of_zones(objects(reply, "zones"))
        stats = self.stats()
        fault = reply.get("fault_ns")
        return [advise(known["name"], known, found, fault) for known, found in zip(stats, sampled, strict=True)]

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
            raise self.ended(info)
        if not taken:
            raise DomainError("the Realm ended before its results were taken", hint="raise collect_seconds")
        if not succeeded:
            # The host says so; only the agent's word, on the attested channel, counts.
            raise DomainError("the Realm ended before its agent said that it succeeded", hint="start it again")
        return info

    # Orders

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


def _summary(status: dict[str, Any]) -> str:
    return ", ".join(f"{plain(app.get('name'))} {plain(app.get('state'))}" for app in status["applications"])
