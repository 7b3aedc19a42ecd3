"""Container images of Debian's packages: who owns what, and what may stay out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vambrace.debian.archive import Archive
from vambrace.debian.container import account, debian_layer
from vambrace.errors import BuildError

PASSWD = "root:*:0:0:root:/root:/bin/sh\npostgres:*:101:103::/nonexistent:/usr/sbin/nologin\n"


def test_owners_are_accounts_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    assert account(tmp_path, "postgres") == (101, 103)
    with pytest.raises(BuildError, match="there is no account redis in these packages"):
        account(tmp_path, "redis")


def test_only_what_would_be_there_is_left_out(tmp_path: Path) -> None:
    package = {"name": "dash", "version": "1", "path": "pool/dash.deb", "sha256": "0" * 64}
    (tmp_path / "lock").write_text(json.dumps({"shell": [package]}))
    archive = Archive(tmp_path / "archive", tmp_path / "lock")
    with pytest.raises(BuildError, match="bash is left out, but nothing depends on it"):
        debian_layer(archive, "shell", ["dash"], tmp_path, {}, without=["dash", "bash"])
