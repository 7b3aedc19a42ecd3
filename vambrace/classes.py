"""The three classes of domain, and what each of them is given (docs/domains.md).

All of them have memory, processors, cache and devices for themselves. Everything else is decided by this table: the
rest of the code asks it what a domain is given. Which files a class is made from, and which stages it passes, its own
modules say (``vambrace/host/normal.py``, ``secure.py``, ``realm.py``).
"""

from __future__ import annotations

from typing import Final

from vambrace.errors import ConfigError
from vambrace.record import Record

NEVER, OPTIONAL, REQUIRED = "never", "optional", "required"


class DomainClass(Record):
    """A column of the table in docs/domains.md."""

    name: str  # as a configuration has it
    title: str  # as people read it
    #: Configuration, initial memory and vCPUs are measured while they are loaded.
    measured: bool
    #: Whether the image must have the platform owner's signature over what is measured; one that is there is checked.
    signature: str
    #: It has evidence from TrustZone, and an agent that its owner reaches over attested TLS.
    attested: bool
    #: What its owner's percentages say is encrypted, by a key of this run.
    encrypted: bool
    #: It starts only when its owner has read its token and said yes.
    verdict: bool
    #: It ends by itself: once its applications have succeeded or failed.
    ends_itself: bool
    #: Its endpoints may be connected with those of others.
    messages: bool
    #: The operator has its console.
    console: bool

    def __str__(self) -> str:
        return self.title


NORMAL: Final = DomainClass(
    "normal", "Normal VM",
    measured=False, signature=NEVER, attested=False, encrypted=False, verdict=False, ends_itself=False,
    messages=False, console=True,
)  # fmt: skip
SECURE: Final = DomainClass(
    "secure", "Secure VM",
    measured=True, signature=REQUIRED, attested=True, encrypted=False, verdict=False, ends_itself=False,
    messages=False, console=False,
)  # fmt: skip
REALM: Final = DomainClass(
    "realm", "Realm",
    measured=True, signature=OPTIONAL, attested=True, encrypted=True, verdict=True, ends_itself=True,
    messages=True, console=False,
)  # fmt: skip

CLASSES: Final = {kind.name: kind for kind in (NORMAL, SECURE, REALM)}


def domain_class(name: str) -> DomainClass:
    """The class called ``name``. Raises ``ConfigError``."""
    try:
        return CLASSES[name]
    except KeyError:
        raise ConfigError(f"class: {name[:40]!r} is not known", hint="one of " + ", ".join(CLASSES)) from None
