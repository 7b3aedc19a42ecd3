"""Which Realm the user means: by name, identifier, or the beginning of one."""

from __future__ import annotations

import contextlib

from vambrace.client.context import UUID, Context
from vambrace.client.host import Host
from vambrace.errors import NotFound, UsageError

SHORTEST_PREFIX = 4


def resolve(text: str, context: Context, host: Host, *, foreign: bool = False) -> str:
    """The identifier of the Realm called ``text``.

    Only Realms started from here count, by what was written down here: the host has no say in which Realm a
    name means. With ``foreign`` the host's list is asked where nothing here fits. A living Realm goes before
    those that have ended, and of those the last is meant. ``UsageError`` if several live, ``NotFound`` if
    none fits.
    """
    known = [(state.uuid, state.created) for state in context.all_domains() if _fits(text, state.uuid, state.name)]
    if not known and foreign:
        known = [(info.uuid, info.created) for info in host.domains() if _fits(text, info.uuid, info.name)]
    if not known:
        if foreign:
            raise NotFound(f"no domain is called {text}", hint="'vambrace ps' lists them")
        raise NotFound(
            f"no Realm that was started from here is called {text}",
            hint="'vambrace ps' lists all; those that others started are not yours to command",
        )
    if len(known) == 1:
        return known[0][0]
    living = []
    for uuid, _ in known:
        with contextlib.suppress(NotFound):
            if not host.domain(uuid).final:
                living.append(uuid)
    if len(living) > 1:
        raise UsageError(f"{text} means {len(living)} Realms", hint=f"give one of {', '.join(sorted(living))}")
    return living[0] if living else max(known, key=lambda item: item[1])[0]


def _fits(text: str, uuid: str, name: str) -> bool:
    if UUID.fullmatch(text):
        return uuid == text
    return name == text or (len(text) >= SHORTEST_PREFIX and uuid.startswith(text))
