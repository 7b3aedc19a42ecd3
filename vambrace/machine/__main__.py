"""``python3 -m vambrace.machine --control FD``: the process of one domain, started by the host daemon."""

from __future__ import annotations

import signal
import socket
import sys

from vambrace.errors import UsageError
from vambrace.machine.control import Control, harden


def main(arguments: list[str]) -> int:
    match arguments:
        case ["--control", number] if number.isascii() and number.isdigit():
            descriptor = int(number)
        case _:
            print("usage: python3 -m vambrace.machine --control FD", file=sys.stderr)
            return UsageError.exit_code
    harden()
    # The daemon decides when a domain ends; a terminal's Ctrl-C is not for this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as connection:
        connection.set_inheritable(False)
        Control(connection).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
