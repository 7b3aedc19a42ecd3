"""Where programs of two Realms reach each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vambrace.application import FIRST_PORT, LAST_PORT
from vambrace.canonical import Object
from vambrace.checks import check_choice, check_hex, check_integer, check_name, check_unique
from vambrace.errors import ConfigError
from vambrace.record import Record

OFFER, CONNECT = ROLES = ("offer", "connect")
MAX_ENDPOINTS: Final = 16


class Endpoint(Record):
    """Where programs of this Realm reach another one (``connect``), or are reached by it (``offer``): docs/messages.md.

    ``port`` is the TCP port on the guest's loopback, of the agent or of the program that serves. The peer is a Realm of
    the owner with the personalization value ``owner`` (hex); where given, with the measured name ``realm`` and the
    launch ``measurement`` (hex). Both are empty where any will do.
    """

    name: str
    role: str
    port: int
    owner: str
    realm: str = ""
    measurement: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "endpoint")
        where = f"endpoint {self.name}"
        check_choice(self.role, ROLES, f"{where}: role")
        check_integer(self.port, FIRST_PORT, LAST_PORT, f"{where}: port")
        check_hex(self.owner, 64, f"{where}: owner")
        if self.realm != "":
            check_name(self.realm, f"{where}: realm")
        if self.measurement != "":
            check_hex(self.measurement, 32, f"{where}: measurement")

    @classmethod
    def read(cls, item: Object) -> Endpoint:
        return cls(
            name=item.string("name"),
            role=item.string("role"),
            port=item.integer("port"),
            owner=item.string("owner"),
            realm=item.string("realm"),
            measurement=item.string("measurement"),
        )


def check_endpoints(endpoints: Sequence[Endpoint]) -> None:
    """Several offers may lead to one port; of those that the agent listens on, each is another."""
    if len(endpoints) > MAX_ENDPOINTS:
        raise ConfigError(f"{len(endpoints)} endpoints", hint=f"at most {MAX_ENDPOINTS}")
    check_unique([endpoint.name for endpoint in endpoints], "endpoint")
    listening = listening_ports(endpoints)
    for endpoint in endpoints:
        if listening.count(endpoint.port) > (endpoint.role == CONNECT):
            raise ConfigError(
                f"endpoint {endpoint.name}: port {endpoint.port} is another endpoint's", hint="choose another port"
            )


def listening_ports(endpoints: Sequence[Endpoint]) -> list[int]:
    """The ports of the loopback that the agent listens on for programs."""
    return [endpoint.port for endpoint in endpoints if endpoint.role == CONNECT]
