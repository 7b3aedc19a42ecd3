"""A domain of any class, as whoever started it sees it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid as uuids
from typing import TYPE_CHECKING, Self

from vambrace.checks import check_domain_name
from vambrace.classes import CLASSES
from vambrace.client import names
from vambrace.client.context import Context, DomainState
from vambrace.client.host import DomainInfo, Host
from vambrace.client.progress import Progress, silent
from vambrace.config import DomainConfig
from vambrace.errors import DomainError, HostUnreachable, UsageError, VambraceError

if TYPE_CHECKING:
    from vambrace.image import Bundle

LOAD_SECONDS = 900.0
START_SECONDS = 300.0
END_SECONDS = 120.0
POLL_SECONDS = 1.0
LOADING = ("created", "loading")


class Domain:
    """One domain on one host. As a context manager it destroys the domain when left, unless it was detached."""

    def __init__(self, host: Host, context: Context, uuid: str, config: DomainConfig) -> None:
        self.host = host
        self.uuid, self.config = uuid, config
        self._context = context
        self._detached = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if not self._detached:
            self.abandon()

    def detach(self) -> None:
        """Let the domain go on after this object."""
        self._detached = True

    def close(self) -> None:
        """Close what is open towards the domain: nothing, as long as nothing can be."""

    def abandon(self) -> None:
        """Destroy the domain if it still lives; silent if that fails (the deadline ends it)."""
        self.close()
        with contextlib.suppress(VambraceError):
            if not self.info().final:
                self.host.destroy(self.uuid)

    def start(self, progress: Progress = silent) -> None:
        """Wait until it runs. Raises ``DomainError``: it has ended."""
        info = self.host.wait(self.uuid, lambda info: info.state == "running", timeout=START_SECONDS, progress=progress)
        if info.final:
            raise self.ended(info)

    # What is known

    @property
    def state(self) -> DomainState:
        return self._context.domain(self.uuid)

    def info(self) -> DomainInfo:
        """What the host says of it."""
        return self.host.domain(self.uuid)

    def destroy(self) -> DomainInfo:
        """End the domain now; returns when nothing of it is left on the host."""
        self.close()
        self.host.destroy(self.uuid)
        return self.host.wait(self.uuid, lambda info: info.final, timeout=END_SECONDS)

    def ended(self, info: DomainInfo) -> DomainError:
        """The error that it has ended, of a domain that has."""
        unexecuted = "" if info.executed else "; it never executed"
        verb = "has" if info.state in ("failed", "succeeded") else "is"
        hint = "'vambrace ps --all' shows how it ended"
        if info.state == "failed" and info.executed:
            hint = "what its programs said is gone with it; 'vambrace run' without --detach shows it in time"
        elif info.state == "succeeded":
            hint = "what was not taken before its end is gone with it"
        return DomainError(
            f"the {self.config.kind} {verb} {info.state}: {info.reason or 'no reason given'}{unexecuted}", hint=hint
        )


def ask_for(
    bundle: Bundle, measurement: bytes, *, host: Host, context: Context, name: str | None, progress: Progress = silent
) -> str:
    """Send ``bundle`` if the host has not got it, and ask for a domain of it (401); its identifier.

    Nothing is left behind, there or here, where that fails. Raises ``UsageError`` (name), ``HostError``.
    """
    if name is not None:
        check_domain_name(name)
    path, config = bundle.path, bundle.config
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
            host.send(bundle, digest, progress)
        context.save_domain(state, config=config.encode())
        progress(f"asking for the {config.kind}")
        asked = True
        host.create(state.uuid, state.name, digest, bytes.fromhex(state.nonce))
    except BaseException as error:
        if asked and (isinstance(error, HostUnreachable) or not isinstance(error, VambraceError)):
            # No answer, or Ctrl-C, say: the host may have made the domain.
            with contextlib.suppress(VambraceError):
                host.destroy(state.uuid)
        context.forget_domain(state.uuid)
        if ours:
            # What is refused leaves no image behind. Somebody else's domain keeps it, if it has one.
            with contextlib.suppress(VambraceError):
                host.delete_image(digest)
        raise
    return state.uuid


def found(text: str, host: Host, context: Context, kinds: tuple[str, ...] = tuple(CLASSES)) -> tuple[str, DomainConfig]:
    """Identifier and configuration of what was started from here and is called ``text``.

    Raises ``NotFound``, ``UsageError``: it is of a class that is not in ``kinds``.
    """
    uuid = names.resolve(text, context, host)
    config = DomainConfig.parse(context.domain_file(uuid, "config.json"))
    if config.kind.name not in kinds:
        wanted = " or ".join(CLASSES[kind].title for kind in kinds)
        raise UsageError(f"{text} is a {config.kind}", hint=f"this is possible with a {wanted} only")
    return uuid, config
