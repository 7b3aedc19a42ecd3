"""Redis, under redis-benchmark."""

from __future__ import annotations

import csv
import io

from examples.gallery.exhibit import Address, ContainerService
from examples.gallery.images import Image
from examples.gallery.load import run_client
from vambrace.errors import VambraceError

COMMANDS = ("SET", "GET", "INCR", "LPUSH")
REQUESTS = 100  # of each command
CLIENTS = 4
KEYS = 1000

IMAGE = Image(
    packages=("redis-server",),
    says={
        "User": "redis",
        "Env": ["PATH=/usr/bin"],
        "Cmd": [
            *("redis-server", "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--maxmemory", "16mb"),
        ],
    },
    accounts=("redis",),
)


class Redis(ContainerService):
    port = 6379
    program = "redis-benchmark"
    image = IMAGE

    def ask(self, address: Address) -> None:
        answer = run_client(["redis-cli", *at(address), "PING"]).strip()
        if answer != "PONG":
            raise VambraceError(f"Redis answers PING with {answer[:100]!r}")

    def do_round(self, address: Address) -> int:
        words = ["redis-benchmark", *at(address), "-c", str(CLIENTS), "-n", str(REQUESTS), "-r", str(KEYS)]
        report = run_client([*words, "-t", ",".join(COMMANDS).lower(), "--csv"])
        check_report(report)
        return REQUESTS * len(COMMANDS)


def at(address: Address) -> tuple[str, ...]:
    return ("-h", address[0], "-p", str(address[1]))


def check_report(report: str) -> None:
    """Raises ``VambraceError`` unless redis-benchmark has rates for just these commands."""
    try:
        rates = {line["test"]: float(line["rps"]) for line in csv.DictReader(io.StringIO(report))}
    except (KeyError, ValueError):
        rates = {}
    if tuple(rates) != COMMANDS or not all(rates.values()):
        raise VambraceError(f"redis-benchmark reports {report[:200]!r}")


EXHIBIT = Redis
