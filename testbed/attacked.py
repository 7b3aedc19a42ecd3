"""A VMM with an attacker in it: the product's, but that whoever has its control socket may run probes in it.

It stands for a VMM that its guest has taken over. It is started by the product's launcher, in the product's jail.

    {"op": "attack", "probe": name, "targets": {…}} → {"reached": "…"} or {"refused": "…"}, or the process ends
"""

from __future__ import annotations

import resource
import sys
from typing import Any

from testbed import attacks
from vambrace.machine import __main__ as machine
from vambrace.machine.control import Control
from vambrace.machine.descriptors import Descriptors


class Attacked(Control):
    def _serve(self, message: dict[str, Any], descriptors: Descriptors) -> dict[str, Any] | None:
        if message.get("op") != "attack":
            return super()._serve(message, descriptors)
        try:
            return {"reached": attacks.PROBES[message["probe"]](message["targets"])}
        except OSError as error:
            return {"refused": f"{type(error).__name__} {error.errno}: {error}"}


def main() -> int:
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] != resource.RLIM_INFINITY:
        # A container's root may not always lock memory; no probe needs that.
        vars(machine)["harden"] = lambda: None
    return machine.main(sys.argv[1:], Attacked)


if __name__ == "__main__":
    sys.exit(main())
