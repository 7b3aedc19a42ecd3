"""In the emulated host: a guest under QEMU/KVM and the same under our VMM, both alive, do several works in turn.

    python3 pairs.py SPECIFICATION      one JSON object each way

``qemu`` and ``realm`` are guests, ``works`` what they do; the result has of each work the operations per second of each
guest, one of each round. Only the standard library, and what ``turns`` has: this file is copied into the host.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from bench.parts import runner, turns


def take_turns(specification: dict[str, Any], errors: Any) -> dict[str, Any]:
    seconds = specification["seconds"]
    result: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        guests: dict[str, turns.RealmGuest | turns.QemuGuest] = {
            "qemu": turns.QemuGuest(stack, specification["qemu"], errors),
            "realm": turns.RealmGuest(stack, specification["realm"], errors),
        }
        for work in specification["works"]:
            for guest in guests.values():
                if (answer := guest.ask({"work": work})) != {"ready": work}:
                    raise RuntimeError(f"{work}: {answer}")
            result[work] = {name: [] for name in guests}
            for number in range(1 + specification["rounds"]):
                for name in guests if number % 2 else reversed(guests):
                    operations = turns.rate(guests[name], seconds)
                    if number:  # the first round is not counted
                        result[work][name].append(operations)
        return result


def main() -> None:
    runner.answer(take_turns)


if __name__ == "__main__":
    main()
