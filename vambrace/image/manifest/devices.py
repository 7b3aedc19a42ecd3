"""Network cards and PCI devices in a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_interface

from vambrace.checks import check_choice
from vambrace.config import Device, check_networks
from vambrace.errors import ConfigError
from vambrace.image.manifest.lines import Mapping


@dataclass(frozen=True)
class NetworkCard:
    """A card at the host's network ``name``; its ``address`` with a prefix length, and the ``gateway`` of the default
    route, may be empty."""

    name: str
    address: str = ""
    gateway: str = ""


@dataclass(frozen=True)
class Hardware:
    """One device, the application that it is given to and, for a network card, its address with the prefix length;
    both may be empty."""

    device: Device
    application: str
    address: str


def read_cards(top: Mapping) -> tuple[NetworkCard, ...]:
    """Network cards, at most one default route of each kind among them. Raises ``ConfigError``."""
    cards = tuple(_card(item) for item in top.words_or_maps("networks"))
    with top.at("networks"):
        check_networks([card.name for card in cards])
        for version in (4, 6):
            if sum(ip_address(card.gateway).version == version for card in cards if card.gateway) > 1:
                raise ConfigError(f"two gateways of IPv{version}", hint="there is one default route")
    return cards


def read_hardware(item: Mapping, applications: list[str]) -> Hardware:
    """One device of a domain that has these ``applications``. Raises ``ConfigError``."""
    with item.at("name"):
        name = item.string("name")
    with item.at("kind"):
        device = Device(name, item.string("kind"))
    with item.at("application"):
        application = item.string("application", "")
        if application:
            check_choice(application, applications, f"device {name}: application")
    with item.at("address"):
        address = item.string("address", "")
        try:
            if address:
                ip_interface(address)
        except ValueError:
            raise ConfigError(f"device {name}: {address[:40]!r} is no address", hint="as in 192.0.2.7/24") from None
    item.done()
    return Hardware(device, application, address)


def _card(item: str | Mapping) -> NetworkCard:
    if isinstance(item, str):
        return NetworkCard(item)
    with item.at("name"):
        name = item.string("name")
    address, gateway = item.string("address", ""), item.string("gateway", "")
    with item.at("address"):
        try:
            own = ip_interface(address) if address else None
        except ValueError:
            own = None
        # An address alone would be a network of its own, which is not what anybody means.
        if address and (own is None or "/" not in address):
            raise ConfigError(f"network {name}: {address[:60]!r} is no address", hint='for example "10.0.0.2/24"')
    with item.at("gateway"):
        try:
            within = not gateway or (own is not None and ip_address(gateway) in own.network)
        except ValueError:
            within = False
        if not within:
            raise ConfigError(f"network {name}: {gateway[:60]!r} is no gateway", hint="one at the card's network")
    item.done()
    return NetworkCard(name, str(own or ""), str(ip_address(gateway)) if gateway else "")
