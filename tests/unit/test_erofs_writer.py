"""Images of EROFS that we write, read by another reader; the kernel's own reads them in tests/server."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from erofs_reader import read_erofs
from hypothesis import given, settings
from hypothesis import strategies as st

from vambrace.debian.erofs_writer import Entry, write_erofs

FILE, FOLDER, LINK, PIPE = 0o100000, 0o040000, 0o120000, 0o010000


@dataclass(eq=False)
class Made:
    mode: int
    content: bytes = b""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    children: dict[bytes, Entry] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.content)


def written(root: Made) -> bytes:
    def copy(entry: Entry, offset: int, length: int) -> bytes:
        assert isinstance(entry, Made)
        return entry.content[offset : offset + length]

    out = io.BytesIO()
    size = write_erofs(root, copy, out)
    return out.getvalue().ljust(size, b"\0")  # a file has its size before anything is written, a buffer has not


NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: not set(name) & {0, 47} and name not in (b".", b".."))
# Sizes around blocks, and around what still fits behind an inode.
CONTENTS = st.one_of(
    st.integers(0, 3).flatmap(lambda n: st.integers(-70, 70).map(lambda d: bytes([n + 1]) * max(0, n * 2048 + d))),
    st.binary(max_size=40),
)
IDENTITY = st.integers(0, (1 << 24) - 1)
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.colour", "security.capability"]), st.binary(max_size=60), max_size=3
)
LEAVES = st.builds(
    Made,
    st.sampled_from([FILE | 0o4751, FILE, LINK | 0o777]),
    CONTENTS,
    IDENTITY,
    IDENTITY,
    st.integers(0, 1 << 62),
    XATTRS,
) | st.builds(Made, st.just(PIPE | 0o600))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.builds(
        Made,
        st.just(FOLDER | 0o1777),
        st.just(b""),
        IDENTITY,
        IDENTITY,
        st.just(0),
        XATTRS,
        st.dictionaries(NAMES, inner, max_size=12),
    ),
    max_leaves=20,
)


@given(children=st.dictionaries(NAMES, TREES, max_size=12))
@settings(deadline=None, max_examples=30)
def test_what_is_written_is_read(children: dict[bytes, Entry]) -> None:
    root = Made(FOLDER | 0o755, children=children)
    found = read_erofs(written(root))
    waiting: list[tuple[bytes, Entry]] = [(b"/", root)]
    seen = 0
    while waiting:
        path, made = waiting.pop()
        assert isinstance(made, Made)
        file = found[path]
        seen += 1
        assert (file.mode, file.uid, file.gid, file.mtime) == (made.mode, made.uid, made.gid, made.mtime)
        assert dict(file.xattrs) == made.xattrs
        if made.mode & 0o170000 == FOLDER:
            folders = sum(child.mode & 0o170000 == FOLDER for child in made.children.values())
            assert file.links == 2 + folders
            waiting += [(path.rstrip(b"/") + b"/" + name, child) for name, child in made.children.items()]
        else:
            assert file.content == made.content and file.links == 1
    assert seen == len(found)


def test_hard_links_and_large_folders() -> None:
    twin = Made(FILE | 0o644, b"t" * 10_000)
    many = {f"{number:05}".encode() * 20: Made(FILE, bytes([number % 256]) * 3) for number in range(3000)}
    folder, large = Made(FOLDER, children={b"c": twin}), Made(FOLDER, children=many)
    root = Made(FOLDER, children={b"a": twin, b"b": folder, b"many": large})
    found = read_erofs(written(root))
    assert found[b"/a"] == found[b"/b/c"] and found[b"/a"].links == 2
    assert len(found) == 3005 and found[b"/many/" + b"02999" * 20].content == bytes([2999 % 256]) * 3


def test_the_largest_folders_are_written_in_seconds() -> None:
    """With work for each name over all that were before it, this would take minutes."""
    many = {f"{number:05}".encode() * 51: Made(FILE) for number in range(40_000)}
    image = written(Made(FOLDER, children={b"many": Made(FOLDER, children=many)}))
    assert len(image) > 40_000 * (255 + 12 + 64)


def test_the_same_tree_gives_the_same_bits() -> None:
    first = Made(FOLDER, children={b"x": Made(FILE, b"1"), b"a": Made(FILE, b"2")})
    second = Made(FOLDER, children={b"a": Made(FILE, b"2"), b"x": Made(FILE, b"1")})
    assert written(first) == written(second)
