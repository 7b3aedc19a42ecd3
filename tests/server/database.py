"""PostgreSQL in a container, as the gallery has it, on a volume."""

from __future__ import annotations

from pathlib import Path

from examples.gallery.images import make_image
from examples.gallery.postgresql.example import IMAGE
from vambrace.debian.cache import Cache

PORT = 5432
VOLUME_MIB = 192
KEY = "tests/volume/database"
FILES = Path(__file__).parents[2] / "examples/gallery/postgresql/files"


def make_postgresql(folder: Path) -> str:
    """Write the image into ``folder``; its reference."""
    return make_image(IMAGE, "postgresql", FILES, folder, Cache().root / "archive")


def database(image: str) -> dict[str, object]:
    """The application, and its volume, as a manifest has them."""
    application = {"name": "database", "container": image, "memory": "160M", "publish": [PORT], "stop_seconds": 60}
    volume = {"name": "database", "application": "database", "size": f"{VOLUME_MIB}M", "mount": "/var/lib/postgresql"}
    # Without encryption of memory it is quicker.
    return {"applications": [{**application, "percent": 0}], "volumes": [{**volume, "key": KEY}]}
