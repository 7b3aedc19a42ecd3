"""PostgreSQL, with psql outside."""

from __future__ import annotations

from examples.gallery.images import Image

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
