"""What only a Realm has in its manifest: messages with other Realms, and a broker of its secrets."""

from __future__ import annotations

from pathlib import Path

from vambrace.application import FIRST_PORT, LAST_PORT
from vambrace.certificate import owner_public_key, personalization
from vambrace.checks import check_choice, check_integer
from vambrace.config import ROLES, Endpoint
from vambrace.errors import ConfigError
from vambrace.image.certificates import read_certificates, read_owner
from vambrace.image.manifest.lines import Mapping
from vambrace.release import Broker, Secret


def read_endpoint(item: Mapping, folder: Path, owner: str) -> Endpoint:
    """One endpoint of a Realm of ``owner``, who is the peer's as well unless another one is named. Raises
    ``ConfigError``."""
    roles = [role for role in ROLES if role in item]
    if len(roles) != 1:
        raise ConfigError("endpoint: either offer or connect is expected", hint="offer: NAME", line=item.line)
    role = roles[0]
    name = item.name("endpoint", role)
    with item.at("owner"):
        peer = read_owner(folder / item.string("owner"))[0] if "owner" in item else owner
    with item.at("port"):
        port = item.integer("port", 0)
        check_integer(port, FIRST_PORT, LAST_PORT, f"endpoint {name}: port")
    with item.at("realm"):
        realm = item.string("realm", "")
    with item.at("measurement"):
        measurement = item.string("measurement", "")
        endpoint = Endpoint(name, role, port, personalization(owner_public_key(peer)).hex(), realm, measurement)
    item.done()
    return endpoint


def read_broker(top: Mapping, folder: Path, applications: list[str]) -> Broker | None:
    """Where the secrets of these ``applications`` come from. Raises ``ConfigError``."""
    item = top.map("broker")
    if item is None:
        return None
    secrets = []
    for each in item.maps("secrets", required=False):
        with each.at("resource"):
            secrets.append(Secret(each.string("name"), each.string("application"), each.string("resource")))
        with each.at("application"):
            check_choice(secrets[-1].application, applications, f"secret {secrets[-1].name}: application")
        each.done()
    with item.at("certificate"):
        [certificate] = read_certificates(folder / item.string("certificate"), "broker")
    with item.at("url"):
        broker = Broker(item.string("url"), certificate, tuple(secrets))
    item.done()
    return broker
