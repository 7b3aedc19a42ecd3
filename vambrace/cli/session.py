"""From a command's options to the objects it works with."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vambrace.errors import ConfigError, HostUnreachable, MalformedEvidence, ServerError, UsageError, VambraceError
from vambrace.suite import NIST, SUITES

if TYPE_CHECKING:
    from vambrace.attest.policy import Policy
    from vambrace.client.attested import Attested
    from vambrace.client.context import Context
    from vambrace.client.host import Host
    from vambrace.client.realm import Realm
    from vambrace.client.trust import Trust


def emulated_host(suite: str) -> str:
    """What 'vambrace server up' calls the host that it starts."""
    return "emulated" if suite == NIST.name else f"emulated-{suite}"


#: The option that means each of them.
EMULATED = {emulated_host(suite): "" if suite == NIST.name else f" --suite {suite}" for suite in SUITES}


def open_context() -> Context:
    from vambrace.client.context import Context

    return Context()


def open_host(options: argparse.Namespace, context: Context) -> Host:
    from vambrace.client.host import Host

    with advice(options, context):
        return Host.current(options.host, context)


def open_policy(options: argparse.Namespace) -> Policy:
    """The policy of ``--policy``, or the default one, with what the other options allow and demand."""
    from vambrace.attest.policy import CACHE_DEMANDS, Policy

    policy = Policy.parse(_read_policy(options.policy)) if options.policy else Policy()
    policy = replace(
        policy,
        allow_debug=policy.allow_debug or options.allow_debug,
        allow_insecure=policy.allow_insecure or options.allow_insecure,
    )
    if options.cache:
        policy = replace(policy, cache_partitions=policy.cache_partitions & CACHE_DEMANDS[options.cache])
    return policy


def _read_policy(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error


def open_trust(options: argparse.Namespace, context: Context) -> Trust:
    from vambrace.client.trust import Trust

    with advice(options, context):
        return Trust.current(options.host, context, open_policy(options))


def open_realm(options: argparse.Namespace) -> Realm:
    """The Realm that ``options.realm`` names; leaving it as a context manager closes its channel only."""
    from vambrace.client.realm import Realm

    return _attach(Realm, options)


def open_attested(options: argparse.Namespace) -> Attested:
    """As ``open_realm``, and Secure VMs."""
    from vambrace.client.attested import Attested

    return _attach(Attested, options)


T = TypeVar("T", bound="Attested")


def _attach(kind: type[T], options: argparse.Namespace) -> T:
    context = open_context()
    host = open_host(options, context)
    return kind.attach(options.realm, host=host, trust=open_trust(options, context), context=context)


@contextlib.contextmanager
def advice(options: argparse.Namespace, context: Context) -> Iterator[None]:
    """What is missing for the emulated server, this program can make; for a real host it cannot."""
    try:
        yield
    except UsageError as error:
        if not context.host_name(options.host):
            error.hint = f"{error.hint}, or start the emulated server with 'vambrace server up'"
        raise
    except ConfigError as error:
        if (name := context.host_name(options.host)) in EMULATED:
            error.hint = f"'vambrace server up{EMULATED[name]}' makes it"
        raise


@contextlib.contextmanager
def reading_token() -> Iterator[None]:
    """Where a file turns out to be no token, say what makes one."""
    try:
        yield
    except MalformedEvidence as error:
        error.hint = error.hint or "give a token's file: 'vambrace token show REALM --save FILE' writes one"
        raise


def not_installed(error: ImportError, extra: str) -> UsageError:
    """What belongs to an extra of the package and is not there: named by its checkout, as no index has vambrace."""
    return UsageError(f"{error.name} is not installed", hint=f"in a checkout of vambrace: pip install '.[{extra}]'")


def advise(error: VambraceError, options: argparse.Namespace) -> None:
    """Say more about an emulated server that does not answer, and which one a command is for."""
    if isinstance(error, ServerError) and hasattr(options, "suite"):
        from vambrace.emulator.server import hint_for

        error.hint = hint_for(error.hint, SUITES[options.suite])
    if not isinstance(error, HostUnreachable) or not hasattr(options, "host"):
        return
    with contextlib.suppress(VambraceError):
        if (name := open_context().host_name(options.host)) in EMULATED:
            suite = EMULATED[name]
            error.hint = (
                f"'vambrace server status{suite}' looks after it,"
                f" 'vambrace server up{suite}' starts it and makes it known"
            )
