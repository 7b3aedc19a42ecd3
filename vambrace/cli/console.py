"""``vambrace console``: the console of a Normal VM, in this terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import threading
from collections.abc import Iterator

from vambrace.cli import session
from vambrace.cli.output import Output
from vambrace.cli.parser import Commands, host_option

LEAVE = b"\x1d"  # Ctrl-]


def add(commands: Commands) -> None:
    parser = commands.add(
        "console", "the console of a Normal VM; Ctrl-] leaves it", _console, "vambrace console debian"
    )
    parser.add_argument("domain", metavar="DOMAIN", help="name, identifier, or the beginning of one")
    host_option(parser)


def _console(options: argparse.Namespace, output: Output) -> int:
    from vambrace.client import names
    from vambrace.client.console import Console

    context = session.open_context()
    host = session.open_host(options, context)
    uuid = names.resolve(options.domain, context, host, foreign=True)
    with Console(host, uuid) as console:
        if sys.stdin.isatty():
            output.say("connected; Ctrl-] leaves the console")
        output.end_progress()
        ended = threading.Event()

        def show() -> None:
            with contextlib.suppress(EOFError, OSError):
                while not ended.is_set():
                    os.write(sys.stdout.fileno(), console.read(1.0))
            ended.set()

        reader = threading.Thread(target=show, daemon=True)
        with _raw(sys.stdin.fileno()):
            reader.start()
            with contextlib.suppress(EOFError):
                while not ended.is_set():
                    # Not for ever: the console may end while nobody types.
                    if not select.select([sys.stdin], [], [], 0.5)[0]:
                        continue
                    keys = os.read(sys.stdin.fileno(), 4096)
                    typed, leave, _ = keys.partition(LEAVE)
                    console.write(typed)
                    if leave or not keys:
                        break
            ended.set()
            reader.join(2)
    output.result({"domain": uuid}, [])
    return 0


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Give every key to the guest, Ctrl-C too; what is no terminal stays as it is."""
    if not os.isatty(terminal):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
