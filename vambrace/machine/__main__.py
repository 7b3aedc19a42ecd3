"""``python3 -m vambrace.machine --control FD [--jail FD]``: the process of one domain.

The host's launcher starts it in a jail (vambrace/jail), and shuts it in by way of the second socket when everything is
imported. Without that it is the same, but not jailed: so it is tested.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable

from vambrace.errors import UsageError
from vambrace.jail.entry import enter
from vambrace.machine.control import Control, harden
from vambrace.pager import restrict_calls


def main(arguments: list[str], control_by: Callable[[socket.socket], Control] = Control) -> int:
    match arguments:
        case ["--control", control]:
            way_in = ""
        case ["--control", control, "--jail", way_in]:
            pass
        case _:
            control = way_in = "?"
    if not control.isdecimal() or not way_in.isdecimal() and way_in:
        print("usage: python3 -m vambrace.machine --control FD [--jail FD]", file=sys.stderr)
        return UsageError.exit_code
    harden()
    # The daemon decides when a domain ends; a terminal's Ctrl-C is not for this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(control)) as connection:
        connection.set_inheritable(False)
        if way_in:
            enter(int(way_in), restrict_calls)
        control_by(connection).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
