"""In the emulated host: guests that need the same device, one after the other: each has it, works, and ends.

    python3 alone.py SPECIFICATION      one JSON object each way

``guests`` are by their names, each a ``vmm`` ("qemu" or "realm") and what it boots; ``works`` what each does in every
round; ``encrypt`` the percentages of its zones that a guest of ours gets in each round, after it has worked without.
The result has of each work the operations per second of each guest, one of each round; ``NAME encrypted`` is the guest
at those percentages. Only the standard library, and what its neighbours have: this file is copied into the host.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from bench.parts import runner, turns

ENCRYPTED = "{} encrypted"


def take_turns(specification: dict[str, Any], errors: Any) -> dict[str, Any]:
    guests, works = specification["guests"], specification["works"]
    result: dict[str, dict[str, list[float]]] = {work: {} for work in works}

    def note(rates: dict[str, float], name: str) -> None:
        for work, operations in rates.items():
            result[work].setdefault(name, []).append(operations)

    for number in range(specification["rounds"]):
        for name in guests if number % 2 else reversed(guests):
            with ExitStack() as stack:
                guest = turns.GUESTS[guests[name]["vmm"]](stack, guests[name], errors)
                note(turns.work_through(guest, works, specification["seconds"]), name)
                if isinstance(guest, turns.RealmGuest) and "encrypt" in guests[name]:
                    guest.encrypt(guests[name]["encrypt"])
                    note(turns.work_through(guest, works, specification["seconds"]), ENCRYPTED.format(name))
    return result


def main() -> None:
    runner.answer(take_turns)


if __name__ == "__main__":
    main()
