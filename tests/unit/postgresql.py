"""A PostgreSQL server of a test's own, reached by a socket in its folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text


def program(name: str) -> str | None:
    """Debian keeps them apart, by version."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(versions[-1]) if versions else shutil.which(name)


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a server, to which the name of a database is to be added: ``fresh`` makes one.

    The server refuses to be root's: then it is somebody else's.
    """
    initdb, server = program("initdb"), program("postgres")
    assert initdb and server
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        user = "nobody" if os.geteuid() == 0 else None
        if user:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data = folder / "data"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "user": user, "cwd": folder}
        subprocess.run([initdb, "-D", data, "-U", "broker", "-A", "trust", "-N"], check=True, **quiet)
        words = [server, "-D", data, "-k", folder, "-h", ""]
        process = subprocess.Popen(words, **quiet)
        try:
            ready = program("pg_isready") or "pg_isready"
            for _ in range(100):
                if subprocess.run([ready, "-q", "-h", folder], timeout=10).returncode == 0:
                    break
                subprocess.run(["sleep", "0.1"])
            yield f"postgresql+psycopg://broker@/{{}}?host={folder}"
        finally:
            process.send_signal(signal.SIGINT)  # whoever is connected or not
            process.wait(30)


def fresh(server: str) -> str:
    """The URL of a new, empty database."""
    name = f"test_{os.urandom(8).hex()}"
    engine = create_engine(server.format("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.format(name)
