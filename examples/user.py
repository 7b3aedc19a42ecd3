"""Who uses a server in the demos: an identity that is kept, and what it takes to reach the server and to judge it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vambrace.attest.owner import OwnerIdentity
from vambrace.client.context import Context
from vambrace.client.host import Host
from vambrace.client.trust import Trust
from vambrace.emulator.server import Access
from vambrace.suite import Suite


@dataclass(frozen=True)
class User:
    context: Context
    owner: OwnerIdentity
    host: Host
    trust: Trust

    @classmethod
    def at(cls, access: Access, folder: Path, suite: Suite) -> Self:
        """Who works in ``folder``, with a key of ``suite``, at the server that ``access`` leads to."""
        context = Context(folder / suite.name)
        if not (context.owner / "certificate.pem").exists():
            OwnerIdentity.create(context.owner, suite=suite)
        host = Host(access.url, str(access.certificate), str(access.key), str(access.ca))
        trust = Trust.load(access.vendor_root, access.references)
        return cls(context, OwnerIdentity.load(context.owner), host, trust)

    @property
    def options(self) -> dict[str, Any]:
        """What ``Realm.create`` and its like take of a user."""
        return {"host": self.host, "owner": self.owner, "trust": self.trust, "context": self.context}
