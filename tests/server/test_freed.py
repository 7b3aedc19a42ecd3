"""What a Realm's kernel frees is dropped, not encrypted."""

from __future__ import annotations

from machine import eventually
from user import User, await_log

PORT = 8000
FREED = (24 << 20) // 4096  # pages that the program gives back


def test_freed_pages_are_dropped(user: User) -> None:
    """Once an application has freed memory, its zone drops about as many pages; what it still uses stays whole."""
    freer = {"name": "freer", "command": ["python3", "freer.py", str(PORT)], "memory": "64M", "publish": [PORT]}
    with user.started(user.bundle(freer)) as realm:
        await_log(realm, "freer", b"filled\n")
        before = realm.stats()[1]
        assert before["name"] == "freer" and before["percent"] == 50
        realm.connect(PORT).close()
        await_log(realm, "freer", b"freed\n")
        # The kernel reports after two seconds, and blocks of 16 pages and more: not quite all.
        wanted = before["discarded"] + FREED * 3 // 4
        assert eventually(lambda: realm.stats()[1]["discarded"] >= wanted, 120), (before, realm.stats()[1])
        said = await_log(realm, "freer", b"whole\n")
        assert b"harmed" not in said
