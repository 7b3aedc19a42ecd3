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
    result: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        guests = {name: kind(stack, specification[name], errors) for name, kind in turns.GUESTS.items()}
        for work in specification["works"]:
            result[work] = {name: [] for name in guests}
            for number in range(specification["rounds"]):
                for name in guests if number % 2 else reversed(guests):
                    # Begun anew each time: a connection goes on as it has begun.
                    result[work][name].append(turns.work_through(guests[name], [work], specification["seconds"])[work])
        return result


def main() -> None:
    runner.answer(take_turns)


if __name__ == "__main__":
    main()
