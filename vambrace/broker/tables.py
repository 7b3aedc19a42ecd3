"""The database's tables, and what SQLite and PostgreSQL need to be told so that nothing is lost or changed."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Final

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
)
from sqlalchemy.exc import ArgumentError

from vambrace.errors import ConfigError

SCHEMA: Final = 2
_RESOURCE: Final = 3 * 64 + 2

METADATA: Final = MetaData()

SECRETS: Final = Table(
    "secrets",
    METADATA,
    Column("resource", String(_RESOURCE), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("policy", LargeBinary, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)
AUDIT: Final = Table(
    "audit",
    METADATA,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("resource", String(_RESOURCE), nullable=False, index=True),
    Column("change", Boolean, nullable=False),
    Column("entry", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)
#: One row: where the log ends, up to where it was verified last with what it says of all rows, and the schema.
HEAD: Final = Table(
    "head",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("schema", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("tag", LargeBinary, nullable=False),
    Column("checked_sequence", BigInteger, nullable=False),
    Column("checked_hash", LargeBinary, nullable=False),
    Column("checked_tag", LargeBinary, nullable=False),
)


def _after_create(dialect: str, statement: str) -> None:
    event.listen(AUDIT, "after_create", DDL(statement).execute_if(dialect=dialect))  # type: ignore[no-untyped-call]


# Nobody who is not the tables' owner can take an entry back; whoever is, breaks the chain.
for _action in ("UPDATE", "DELETE"):
    _after_create(
        "sqlite",
        f"CREATE TRIGGER audit_no_{_action.lower()} BEFORE {_action} ON audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    )
# What REPLACE takes away, no trigger for DELETE sees.
_after_create(
    "sqlite",
    "CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit "
    "WHEN EXISTS (SELECT 1 FROM audit WHERE sequence = NEW.sequence) "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
)
_after_create(
    "postgresql",
    "CREATE OR REPLACE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$",
)
_after_create(
    "postgresql",
    "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit "
    "FOR EACH ROW EXECUTE FUNCTION audit_append_only()",
)
_after_create(
    "postgresql",
    "CREATE TRIGGER audit_not_emptied BEFORE TRUNCATE ON audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()",
)


def connect(url: str) -> Engine:
    """The database at ``url`` (SQLAlchemy's form): SQLite or PostgreSQL. Raises ``ConfigError``."""
    try:
        # Parameters are secrets and keys of rows: they do not belong in an error or a log.
        engine = create_engine(url, hide_parameters=True, pool_pre_ping=True)
    except (ArgumentError, ImportError, ValueError):
        raise ConfigError(
            "the database's URL is not one that this broker can use",
            hint="sqlite:///FILE, or postgresql+psycopg://USER@HOST/NAME with psycopg installed",
        ) from None
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise ConfigError(f"the database is {engine.dialect.name}", hint="SQLite or PostgreSQL")
    if engine.dialect.name == "sqlite":
        _make_private(engine.url.database)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_private(path: str | None) -> None:
    """A new database is its owner's only, and so is what SQLite puts beside it."""
    if path:
        with contextlib.suppress(OSError):  # it is there, or SQLite says why it cannot be
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Transactions are begun by us: the driver's own ways do not go together with savepoints.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000", "secure_delete = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
