"""From a command's options to the objects it works with."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vambrace.attest.policy import Policy
    from vambrace.client.context import Context
    from vambrace.client.host import Host
    from vambrace.client.realm import Realm
    from vambrace.client.trust import Trust


def open_context() -> Context:
    from vambrace.client.context import Context

    return Context()


def open_host(options: argparse.Namespace, context: Context) -> Host:
    from vambrace.client.host import Host

    return Host.current(options.host, context)


def open_policy(options: argparse.Namespace) -> Policy:
    from vambrace.attest.policy import Policy

    return Policy(allow_debug=options.allow_debug, allow_insecure=options.allow_insecure)


def open_trust(options: argparse.Namespace, context: Context) -> Trust:
    from vambrace.client.trust import Trust

    return Trust.current(options.host, context, open_policy(options))


def open_realm(options: argparse.Namespace) -> Realm:
    """The Realm that ``options.realm`` names; leaving it as a context manager closes its channel only."""
    from vambrace.client.realm import Realm

    context = open_context()
    host = open_host(options, context)
    return Realm.attach(options.realm, host=host, trust=open_trust(options, context), context=context)
