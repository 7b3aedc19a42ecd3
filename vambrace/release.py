"""What of a Realm's configuration says where its secrets come from (docs/broker.md): its broker, and what it may seal.

Standard library only, and few modules of it: the VMM process imports this file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from vambrace.canonical import Object
from vambrace.certificate import certificate_der
from vambrace.checks import check_choice, check_integer, check_name, check_unique
from vambrace.errors import ConfigError
from vambrace.record import Record

MAX_SECRETS: Final = 64
#: What to do in a manifest where a key must come from a broker, or be sealed, and nothing says so.
NAME_BROKER: Final = "name one, with url and certificate, under broker: docs/broker.md"
NAME_SEALING: Final = "say what opens it, for example sealing: {to: measurement}"
#: What opens what was sealed: the same measurement, or any image of this name and owner that is not older.
MEASUREMENT, OWNER = SEALS = ("measurement", "owner")
MAX_VERSION: Final = (1 << 31) - 1

_URL = re.compile(r"https://(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:]{2,39}\]):([0-9]{1,5})")
#: One of the three parts of a resource's name.
PART: Final = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?"
_RESOURCE = re.compile(f"{PART}/{PART}/{PART}")


def check_resource(name: object, where: str) -> None:
    """A broker's name for what it holds. Raises ``ConfigError``."""
    if not isinstance(name, str) or not _RESOURCE.fullmatch(name):
        raise ConfigError(f"{where}: {str(name)[:60]!r} is no resource", hint="repository/type/name")


class Secret(Record):
    """What an ``application`` may ask its agent for, by ``name``; ``resource`` is the broker's name for it."""

    name: str
    application: str
    resource: str

    def __post_init__(self) -> None:
        check_name(self.name, "secret")
        check_name(self.application, f"secret {self.name}: application")
        check_resource(self.resource, f"secret {self.name}")

    @classmethod
    def read(cls, item: Object) -> Secret:
        return cls(item.string("name"), item.string("application"), item.string("resource"))


class Broker(Record):
    """Whom a Realm asks for secrets: the broker with the key of ``certificate`` (PEM), or one that it certifies."""

    url: str
    certificate: str
    secrets: tuple[Secret, ...] = ()

    def __post_init__(self) -> None:
        found = _URL.fullmatch(self.url) if isinstance(self.url, str) else None
        if not found or not 1 <= int(found[1]) <= 65535:
            raise ConfigError(f"broker: {str(self.url)[:60]!r} is no URL of one", hint='"https://NAME:PORT"')
        try:
            certificate_der(self.certificate)
        except ConfigError as error:
            hint = "the broker's certificate.pem, which 'vambrace broker init' makes"
            raise ConfigError(error.message.replace("owner", "broker", 1), hint=hint) from None
        if len(self.secrets) > MAX_SECRETS:
            raise ConfigError(f"broker: {len(self.secrets)} secrets", hint=f"at most {MAX_SECRETS}")
        for application in {secret.application for secret in self.secrets}:
            check_unique([each.name for each in self.secrets if each.application == application], "secret")

    @property
    def place(self) -> tuple[str, int]:
        """Name or address, and port."""
        name, _, port = self.url.removeprefix("https://").rpartition(":")
        return name.strip("[]"), int(port)

    @classmethod
    def read(cls, item: Object) -> Broker:
        secrets = tuple(Secret.read(secret) for secret in item.objects("secrets"))
        return cls(item.string("url"), item.string("certificate"), secrets)

    def check_applications(self, names: Sequence[str]) -> None:
        for secret in self.secrets:
            check_choice(secret.application, names, f"secret {secret.name}: application")


class Sealing(Record):
    """``to`` is one of ``SEALS``. ``version`` counts an owner's images: each opens what older ones sealed."""

    to: str = MEASUREMENT
    version: int = 0

    def __post_init__(self) -> None:
        check_choice(self.to, SEALS, "sealing: to")
        check_integer(self.version, 0, MAX_VERSION, "sealing: version")
        if self.to == MEASUREMENT and self.version:
            raise ConfigError("sealing: one measurement has no versions", hint="leave it out, or seal to the owner")

    @classmethod
    def read(cls, item: Object) -> Sealing:
        return cls(item.string("to"), item.integer("version"))
