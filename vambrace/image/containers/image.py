"""A reference to an image → its root file system as a disk, and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vambrace.debian.erofs import VerityDisk, add_verity
from vambrace.debian.erofs_writer import Entry, write_erofs
from vambrace.errors import ImageError
from vambrace.image.containers import tar
from vambrace.image.containers.layer import MAX_UNPACKED, unpack_layer
from vambrace.image.containers.settings import ImageSettings, User, find_user, read_settings
from vambrace.image.containers.source import Source, fetch
from vambrace.image.containers.tree import Node, Tree


@dataclass(frozen=True)
class ContainerImage:
    """``disk`` is the file of the root file system, ``files`` how many are in it, ``tree`` what they are."""

    settings: ImageSettings
    disk: Path
    verity: VerityDisk
    files: int
    accounts: dict[str, bytes]
    tree: Tree

    def user(self, text: str) -> User:
        """Whom ``text`` stands for in this image. Raises ``ImageError``."""
        return find_user(text, self._account)

    def _account(self, path: str, most: int) -> bytes:
        data = self.accounts[path]
        if len(data) > most:
            raise ImageError(f"the image's {path} is too large", hint=f"at most {most} bytes")
        return data


def read_image(reference: str, work: Path) -> ContainerImage:
    """The image ``reference``, as ``source.reference`` gives it, made into a disk in the new folder ``work``.

    The same image gives the same bits, however it was packed. Raises ``ImageError`` for a hostile or damaged image,
    ``BuildError`` where a tool fails.
    """
    work.mkdir()
    (work / "copy").mkdir()
    return convert(fetch(reference, work / "copy"), work)


def convert(source: Source, work: Path) -> ContainerImage:
    """An image that is on this machine, made into a disk in the folder ``work``. Raises as ``read_image``."""
    settings = read_settings(source.config)
    files: list[BinaryIO] = []
    try:
        tree = _stack(source, work, files)
        tree.make_folder(settings.directory)
        with (work / "disk").open("w+b") as out:
            write_erofs(tree.root, lambda entry, offset, length: _content(entry, offset, length, files), out)
        accounts = {path: _account(tree, path, files) for path in ("/etc/passwd", "/etc/group")}
    finally:
        for number, file in enumerate(files):
            file.close()
            (work / f"layer-{number}").unlink()
    verity = add_verity(work / "disk")
    return ContainerImage(settings, work / "disk", verity, sum(1 for _ in tree.walk()), accounts, tree)


def _stack(source: Source, work: Path, files: list[BinaryIO]) -> Tree:
    """Unpack the layers beside each other, and put them together; their tars stay open in ``files``."""
    tree = Tree()
    room = MAX_UNPACKED
    for number, (blob, diff_id) in enumerate(source.layers):
        path = work / f"layer-{number}"
        try:
            room -= unpack_layer(blob, diff_id, path, room)
        finally:
            if path.exists():
                files.append(path.open("rb"))
        tree.apply(files[-1])
    return tree


def _content(entry: Entry, offset: int, length: int, files: list[BinaryIO]) -> bytes:
    assert isinstance(entry, Node)
    if entry.kind == tar.SYMLINK:
        return entry.link[offset : offset + length]
    file = files[entry.layer]
    file.seek(entry.offset + offset)
    return file.read(length)


def _account(tree: Tree, path: str, files: list[BinaryIO]) -> bytes:
    node = tree.find(path)
    return _content(node, 0, min(node.size, 2 << 20), files) if node is not None and node.kind == tar.FILE else b""
