"""PostgreSQL, with psql outside."""

from __future__ import annotations

from examples.gallery.exhibit import Address, ContainerService
from examples.gallery.images import Image
from examples.gallery.load import run_client
from vambrace.errors import VambraceError

STAYS = 20  # each in a transaction of its own, in one session of psql
TABLE = "create table if not exists stays (bed integer primary key, days integer not null)"

IMAGE = Image(
    packages=("postgresql-17",),
    without=("libllvm19", "libz3-4"),  # the compiler that its queries may go through, which is off
    owners={"var/lib/postgresql": "postgres"},
    says={
        "User": "postgres",
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PGDATA=/var/lib/postgresql/data"],
        "WorkingDir": "/var/lib/postgresql",
        "Entrypoint": ["/usr/local/bin/serve"],
        "Cmd": [
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
            *("-c", "jit=off", "-c", "shared_buffers=16MB", "-c", "max_connections=16"),
            *("-c", "min_wal_size=4MB", "-c", "max_wal_size=16MB"),
        ],
        "StopSignal": "SIGINT",  # its fast shutdown: clients are sent away, and everything is on the disk
    },
)


class PostgreSql(ContainerService):
    port = 5432
    program = "psql"
    image = IMAGE
    beds = 0  # that stays were committed for

    def ask(self, address: Address) -> None:
        psql(address, f"set client_min_messages = warning; {TABLE};")

    def do_round(self, address: Address) -> int:
        first, self.beds = self.beds, self.beds + STAYS
        lines = [f"begin; insert into stays values ({bed}, {bed % 30}); commit;" for bed in range(first, self.beds)]
        found = psql(address, "\n".join([*lines, "select count(*), sum(days) from stays;"])).strip()
        there = f"{self.beds}|{sum(bed % 30 for bed in range(self.beds))}"
        if found != there:
            raise VambraceError(f"PostgreSQL has {found[:100]!r} of {there!r}")
        return STAYS + 1


def psql(address: Address, script: str) -> str:
    """What psql prints of the rows that ``script`` gives. Raises ``VambraceError`` at the first error of it."""
    place = ("--host", address[0], "--port", str(address[1]), "--username", "postgres", "--dbname", "postgres")
    plain = ("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password", "--set", "ON_ERROR_STOP=1")
    return run_client(["psql", *plain, *place], script)


EXHIBIT = PostgreSql
