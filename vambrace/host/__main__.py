"""``python3 -m vambrace.host --config FILE [--gate FIFO]``

With ``--gate`` everything heavy is imported first; then the daemon waits for one line from the FIFO. A
machine whose state is saved at that moment holds no key, no secret and no random number of this daemon.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import resource
import ssl
import sys
import time
from pathlib import Path

from vambrace.errors import HostError, VambraceError
from vambrace.host.api import application
from vambrace.host.host import Host
from vambrace.host.launcher import JailLauncher, Launcher
from vambrace.host.platform import Platform, Session
from vambrace.host.settings import Settings, load_settings
from vambrace.host.store import Store
from vambrace.host.vsock import Connector, connect_vsock
from vambrace.jail import linux
from vambrace.serving.doors import Bounds, serving
from vambrace.serving.signals import stop_signal
from vambrace.serving.tls import server_context
from vambrace.trustzone import TrustZone
from vambrace.trustzone.insecure import InsecurePlatform

# Two for each stream between Realms, which may be some hundreds for each of them.
DESCRIPTORS = 1 << 16
#: Connections to the API, those that have shown no certificate yet, too. A channel lasts as long as its domain.
BOUNDS = Bounds(2048, 512)
#: The capabilities that the daemon keeps: to read the page maps of VMMs, which are another user's, to put them into
#: their places, and end them; to see to cards and devices; and to listen on any port.
KEPT = (
    *(linux.CAP_DAC_OVERRIDE, linux.CAP_DAC_READ_SEARCH, linux.CAP_KILL, linux.CAP_NET_BIND_SERVICE),
    *(linux.CAP_NET_ADMIN, linux.CAP_SYS_PTRACE, linux.CAP_SYS_ADMIN, linux.CAP_SYS_NICE, linux.CAP_SYS_RESOURCE),
)

log = logging.getLogger("vambrace.host")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m vambrace.host", description="the vambrace host daemon")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings, a TOML file")
    parser.add_argument("--gate", type=Path, metavar="FIFO", help="first wait for a line from here")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    # Requests are their users' business: aiohttp would log each.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    launcher = JailLauncher()
    if arguments.gate:
        pass_gate(arguments.gate)
    allow_descriptors()
    give_up_capabilities()
    try:
        asyncio.run(serve(load_settings(arguments.config), launcher))
    except VambraceError as error:
        print(f"vambrace-host: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def pass_gate(gate: Path) -> None:
    """Block until ``gate`` gives a line, then take fresh entropy: a saved state may be resumed many times."""
    log.info("ready at gate")
    while True:
        with gate.open("rb") as file:
            if file.readline():
                break
        # Opened and closed without a word: not the signal.
        time.sleep(0.1)
    # Generators that were seeded by imports, before the gate. The kernel's is the resumer's matter.
    ssl.RAND_add(os.urandom(64), 64.0)
    random.seed()


def allow_descriptors() -> None:
    """Let this process open ``DESCRIPTORS`` files, or as many as somebody who is not root may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= DESCRIPTORS:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, max(hard, DESCRIPTORS)))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def give_up_capabilities() -> None:
    """What the launcher needs the daemon does not. Not once there is a second thread: each has its own capabilities."""
    linux.no_new_privileges()
    linux.bound_capabilities(KEPT)
    linux.set_capabilities(KEPT)


async def serve(
    settings: Settings,
    launcher: Launcher,
    *,
    connect: Connector = connect_vsock,
    ready: asyncio.Future[int] | None = None,
) -> None:
    """Run the daemon until SIGTERM or SIGINT; ``ready`` is given the port. Raises ``VambraceError``."""
    stop = stop_signal()
    context = server_context(settings.certificate, settings.key, client_ca=settings.client_ca)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(launcher.close)
        await launcher.open()
        session = stack.enter_context(_session(settings))
        store = Store(settings.state)
        platform = Platform(session, settings.endorsement, settings.vendor_root, insecure=bool(settings.insecure))
        host = Host(settings, store, platform, launcher, connect)
        stack.push_async_callback(host.close)
        host.recover()
        try:
            place, app = (settings.listen, settings.port), application(host, connect)
            port = await stack.enter_async_context(serving(app, place, BOUNDS, context))
        except OSError as error:
            raise HostError(
                f"cannot listen on {settings.listen}:{settings.port}: {error.strerror}",
                hint="choose another port in the settings",
            ) from error
        log.info("listening on %s:%d%s", settings.listen, port, "" if platform.endorsed else ", not endorsed")
        if ready is not None:
            ready.set_result(port)
        await stop.wait()
        log.info("stopping")


def _session(settings: Settings) -> contextlib.AbstractContextManager[Session]:
    if settings.insecure:
        log.warning("no TrustZone: software keys, every token says that it is insecure")
        return InsecurePlatform(settings.suite)
    return TrustZone(settings.suite)


if __name__ == "__main__":
    sys.exit(main())
