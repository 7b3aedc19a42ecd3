"""What an application in Python or Java is made from, as its manifest says."""

from __future__ import annotations

from pathlib import Path

from vambrace.errors import ConfigError
from vambrace.image.java import JavaArchive
from vambrace.image.manifest.lines import CORRECT_PATH, Mapping


def read_python(item: Mapping, folder: Path) -> Path | None:
    """``python: {requirements: FILE}``: the file. Raises ``ConfigError``."""
    python = item.map("python")
    if python is None:
        return None
    with python.at("requirements"):
        requirements = folder / python.string("requirements")
        if not requirements.is_file():
            raise ConfigError(f"{requirements} does not exist", hint=CORRECT_PATH)
    python.done()
    return requirements


def read_java(item: Mapping, folder: Path) -> JavaArchive | None:
    """``java: FILE``, or ``java: {archive: FILE, options: […], arguments: […]}``. Raises ``ConfigError``."""
    if "java" not in item:
        return None
    if item.is_text("java"):
        with item.at("java"):
            archive = JavaArchive(folder / item.string("java"))
            archive.check()
        return archive
    java = item.map("java")
    assert java is not None
    with java.at("archive"):
        path = folder / java.string("archive")
        archive = JavaArchive(path, java.strings("options"), java.strings("arguments"))
        archive.check()
    java.done()
    return archive
