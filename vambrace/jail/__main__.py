"""``python3 -m vambrace.jail FD``: the launcher. The host daemon starts it, and has the other end of the socket FD."""

from __future__ import annotations

import socket
import sys

from vambrace.errors import UsageError, VambraceError
from vambrace.jail.launcher import Launcher
from vambrace.jail.service import Service


def main(arguments: list[str]) -> int:
    match arguments:
        case [number] if number.isascii() and number.isdigit():
            descriptor = int(number)
        case _:
            print("usage: python3 -m vambrace.jail FD", file=sys.stderr)
            return UsageError.exit_code
    try:
        launcher = Launcher()
    except VambraceError as error:
        print(f"vambrace-launcher: {error.message}", file=sys.stderr)
        return error.exit_code
    with socket.socket(fileno=descriptor) as daemon:
        daemon.set_inheritable(False)
        Service(launcher, daemon).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
