"""A Normal VM, as its operator sees it: a system with a console. Nothing is attested, so nothing is verified."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from vambrace.classes import CLASSES
from vambrace.client.context import Context
from vambrace.client.domain import Domain, ask_for, found
from vambrace.client.host import Host
from vambrace.client.progress import Progress, silent
from vambrace.errors import UsageError


class NormalVm(Domain):
    kinds = tuple(kind.name for kind in CLASSES.values() if not kind.attested)

    @classmethod
    def create(
        cls,
        bundle: Path | str,
        *,
        host: Host | None = None,
        context: Context | None = None,
        name: str | None = None,
        progress: Progress = silent,
    ) -> Self:
        """Send the bundle if the host has not got it, and ask for a VM of it. Raises ``ImageError``, ``HostError``."""
        from vambrace.image import Bundle

        context = context or Context()
        host = host or Host.current(context=context)
        progress("checking the image")
        opened = Bundle.open(bundle)
        if opened.config.kind.name not in cls.kinds:
            raise UsageError(f"{bundle} is the image of a {opened.config.kind}", hint="'vambrace run' starts any")
        uuid = ask_for(opened, b"", host=host, context=context, name=name, progress=progress)
        return cls(host, context, uuid, opened.config)

    @classmethod
    def attach(cls, name: str, *, host: Host | None = None, context: Context | None = None) -> Self:
        """One that was started before, from here. Leaving it ends nothing."""
        context = context or Context()
        host = host or Host.current(context=context)
        uuid, config = found(name, host, context, cls.kinds)
        its = cls(host, context, uuid, config)
        its._detached = True
        return its
