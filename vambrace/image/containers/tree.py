"""Layers, one over the other, as one tree (OCI image specification, "Image Layer Filesystem Changeset").

The tree is in memory and in nobody's file system: a path with ``..``, or through a link, reaches nothing but nodes of
it. Contents of files stay in their layer's tar, and a node says where.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from vambrace.errors import ImageError
from vambrace.image.containers import tar

MAX_MEMBERS: Final = 400_000  # of all layers together
MAX_PATH, MAX_NAME, MAX_DEPTH = 4096, 255, 256  # Linux' own bounds, and one on folders in folders
MAX_STEPS: Final = 20_000_000  # from one entry to another, until all layers are in: seconds
MAX_LINKS: Final = 40  # that a path may lead through, as in Linux
MAX_XATTRS: Final = 16 << 10  # bytes of names and values of one file
MAX_TEXT: Final = 256 << 20  # bytes of names, links and attributes of all files: what is kept in memory
_TYPES: Final = {tar.FILE: stat.S_IFREG, tar.FOLDER: stat.S_IFDIR, tar.SYMLINK: stat.S_IFLNK, tar.FIFO: stat.S_IFIFO}
_WHITEOUT, _OPAQUE, _AUFS = b".wh.", b".wh..wh..opq", b".wh..wh."
#: What would tell an overlay file system, which containers run on, to look elsewhere.
_FORBIDDEN_XATTRS = ("trusted.overlay.", "user.overlay.")
#: Those that programs see; what belongs to the machine that made the image is left out.
_KEPT_XATTRS = ("user.", "security.capability")
_AGAIN = "build the image again, with a tool that follows the OCI image specification"


@dataclass(eq=False, slots=True)
class Node:
    """A file, folder, symbolic link or pipe, as ``vambrace.debian.erofs_writer`` writes it.

    ``mtime`` in nanoseconds; the content of a file is ``size`` bytes at ``offset`` of the tar of ``layer``;
    ``children`` is a folder's.
    """

    kind: str
    permissions: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    layer: int = 0
    offset: int = 0
    link: bytes = b""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def mode(self) -> int:
        """With its type, as in ``st_mode``."""
        return _TYPES[self.kind] | self.permissions


class Tree:
    """What the layers that were ``apply``-ed so far come to."""

    def __init__(self) -> None:
        self.root = Node(tar.FOLDER)
        self._layers = 0
        self._members = 0
        self._steps = 0
        self._text = 0
        # Entries of the layer that is being applied: a whiteout in it is not for them.
        self._fresh: set[tuple[Node, bytes]] = set()

    def apply(self, layer: BinaryIO) -> None:
        """Put the tar ``layer`` over the tree. Raises ``ImageError`` for what no container can have."""
        self._fresh = set()
        for member in tar.read_members(layer):
            self._members += 1
            if self._members > MAX_MEMBERS:
                raise ImageError(f"the image holds more than {MAX_MEMBERS} files", hint="take some out of it")
            self._text += len(member.name) + len(member.link) + sum(map(len, member.xattrs.values()))
            if self._text > MAX_TEXT:
                raise ImageError(
                    f"the image's names, links and attributes have more than {MAX_TEXT >> 20} MiB",
                    hint="take some out of it",
                )
            self._apply(member)
        self._fresh = set()
        self._layers += 1

    def find(self, path: str) -> Node | None:
        """What is at ``path``, links followed inside the tree; None where nothing is."""
        stack, missing = self._walk(_split(path.encode("utf-8", "surrogateescape")))
        return stack[-1] if stack and not missing else None

    def make_folder(self, path: str) -> None:
        """See that there is a folder at ``path``. Raises ``ImageError`` where something else is."""
        name = path.encode("utf-8", "surrogateescape")
        try:
            self._parent(_split(name), name)
        except ImageError:
            raise ImageError(f"the image's working directory {path[:200]!r} is no folder of it", hint=_AGAIN) from None

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every node with its path, ``/`` first, folders before what is in them, names in order."""
        yield "/", self.root
        # Of each folder on the way what is still to come, and no path of it: there may be very many, and long ones.
        waiting = [("/", iter(sorted(self.root.children.items())))]
        while waiting:
            folder, entries = waiting[-1]
            for name, node in entries:
                path = folder + _text(name)
                yield path, node
                if node.children:
                    waiting.append((path + "/", iter(sorted(node.children.items()))))
                    break
            else:
                waiting.pop()

    def _apply(self, member: tar.Member) -> None:
        path = _split(member.name)
        if b".." in path:
            raise ImageError(f"a layer holds {_text(member.name)!r}: a path that leads out of it", hint=_AGAIN)
        if not path:
            if member.kind != tar.FOLDER:
                raise ImageError("a layer holds a root that is no folder", hint=_AGAIN)
            self._describe(self.root, member)
            return
        if any(name.startswith(_WHITEOUT) for name in path[:-1]):
            raise ImageError(f"a layer holds {_text(member.name)!r}: a whiteout that is a folder", hint=_AGAIN)
        parent = self._parent(path[:-1], member.name)
        if path[-1].startswith(_WHITEOUT):
            self._white_out(parent, path[-1], member)
        elif member.kind in (tar.CHARACTER, tar.BLOCK_DEVICE):
            # A runtime brings its own /dev; anywhere else a device is nobody's honest wish.
            if path[0] != b"dev":
                raise ImageError(f"a layer holds a device outside /dev: {_text(member.name)!r}", hint=_AGAIN)
        else:
            self._put(parent, path[-1], member)

    def _put(self, parent: Node, name: bytes, member: tar.Member) -> None:
        there = parent.children.get(name)
        if member.kind == tar.LINK:
            node = self._link_target(member)
        elif member.kind == tar.FOLDER and there is not None and there.kind == tar.FOLDER:
            node = there
            self._describe(node, member)
        else:
            node = Node(member.kind)
            self._describe(node, member)
        parent.children[name] = node
        self._fresh.add((parent, name))

    def _link_target(self, member: tar.Member) -> Node:
        path = _split(member.link)
        node = None
        if path and b".." not in path:
            stack, missing = self._walk(path[:-1])
            node = stack[-1].children.get(path[-1]) if stack and not missing else None
        if node is None or node.kind == tar.FOLDER:
            raise ImageError(
                f"a layer holds a hard link to {_text(member.link)!r}, which is no file of the image", hint=_AGAIN
            )
        return node

    def _describe(self, node: Node, member: tar.Member) -> None:
        node.permissions, node.uid, node.gid, node.mtime = member.mode, member.uid, member.gid, member.mtime
        node.size, node.layer, node.offset = member.size, self._layers, member.offset
        if member.kind == tar.SYMLINK:
            if not member.link or len(member.link) >= MAX_PATH or b"\0" in member.link:
                raise ImageError(f"a layer holds a link that leads nowhere: {_text(member.name)!r}", hint=_AGAIN)
            node.permissions, node.link, node.size = 0o777, member.link, len(member.link)
        for name in member.xattrs:
            if name.startswith(_FORBIDDEN_XATTRS):
                raise ImageError(f"a layer holds {_text(member.name)!r} with the attribute {name[:40]!r}", hint=_AGAIN)
        node.xattrs = {name: value for name, value in member.xattrs.items() if name.startswith(_KEPT_XATTRS)}
        if sum(len(name) + len(value) for name, value in node.xattrs.items()) > MAX_XATTRS or any(
            len(name.encode("utf-8", "surrogateescape")) > MAX_NAME for name in node.xattrs
        ):
            raise ImageError(
                f"a layer holds {_text(member.name)!r} with large attributes", hint=f"at most {MAX_XATTRS} bytes"
            )

    def _white_out(self, parent: Node, name: bytes, member: tar.Member) -> None:
        """Take away what lower layers have: one entry, or with an opaque whiteout all of them."""
        if member.kind != tar.FILE or member.size:
            raise ImageError(f"a layer holds {_text(member.name)!r}: a whiteout that is not empty", hint=_AGAIN)
        if name == _OPAQUE:
            self._prune(parent)
            return
        if name.startswith(_AUFS):
            return  # aufs' own bookkeeping
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise ImageError(f"a layer holds {_text(member.name)!r}: a whiteout of nothing", hint=_AGAIN)
        child = parent.children.get(hidden)
        if child is not None:
            self._take(parent, hidden, child)

    def _prune(self, folder: Node) -> None:
        """Leave only what came with the present layer."""
        self._step(len(folder.children))
        for name, child in list(folder.children.items()):
            self._take(folder, name, child)

    def _take(self, parent: Node, name: bytes, child: Node) -> None:
        self._prune(child)
        if (parent, name) not in self._fresh and not child.children:
            del parent.children[name]

    def _parent(self, path: list[bytes], whole: bytes) -> Node:
        """The folder at ``path``; what is missing on the way is made."""
        stack, missing = self._walk(path)
        if not stack or stack[-1].kind != tar.FOLDER:
            raise ImageError(f"a layer holds {_text(whole)!r}: a path through a file or a broken link", hint=_AGAIN)
        if len(stack) + len(missing) > MAX_DEPTH:
            raise _too_long(whole)
        node = stack[-1]
        for name in missing:
            child = Node(tar.FOLDER, layer=self._layers)
            node.children[name] = child
            node = child
        return node

    def _walk(self, path: list[bytes]) -> tuple[list[Node], list[bytes]]:
        """The nodes on the way of ``path``, links followed, and the names that the last of them has not got.

        No nodes at all, where no way can be: through a file, a link to nowhere, or more than ``MAX_LINKS`` links.
        """
        stack = [self.root]
        names = list(reversed(path))
        links = 0
        while names:
            self._step(1)
            name = names.pop()
            if stack[-1].kind != tar.FOLDER:
                return [], []
            if name == b"..":
                del stack[max(1, len(stack) - 1) :]
                continue
            child = stack[-1].children.get(name)
            if child is None:
                return ([], []) if b".." in names else (stack, [name, *reversed(names)])
            if child.kind == tar.SYMLINK:
                links += 1
                if links > MAX_LINKS:
                    return [], []
                if child.link.startswith(b"/"):
                    del stack[1:]
                names.extend(reversed([part for part in child.link.split(b"/") if part not in (b"", b".")]))
                continue
            stack.append(child)
        return stack, []

    def _step(self, count: int) -> None:
        """Bounds the time of hostile layers: links through links, whiteouts over whiteouts."""
        self._steps += count
        if self._steps > MAX_STEPS:
            raise ImageError("the image's layers take too long to put together", hint=_AGAIN)


def _split(path: bytes) -> list[bytes]:
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if len(path) >= MAX_PATH or len(names) > MAX_DEPTH or any(len(name) > MAX_NAME for name in names):
        raise _too_long(path)
    if b"\0" in path:
        raise ImageError(f"a layer holds {_text(path[:40])!r}: no name of a file", hint=_AGAIN)
    return names


def _too_long(path: bytes) -> ImageError:
    return ImageError(
        f"a layer holds a path that is too long or too deep: {_text(path[:40])!r}…",
        hint=f"at most {MAX_PATH} bytes, {MAX_NAME} of a name, and {MAX_DEPTH} folders in each other",
    )


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")[:200]
