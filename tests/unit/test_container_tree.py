"""Layers over layers: what they come to, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
from container_images import hard, layer, link, member, stack

from vambrace.errors import ImageError
from vambrace.image.containers import layer as layers
from vambrace.image.containers import tar, tree
from vambrace.image.containers.layer import MAX_RATIO, RATIO_FREE, unpack_layer
from vambrace.image.containers.tree import Tree

BASE = layer(
    member("etc/", mode=0o755),
    member("etc/passwd", b"root", mode=0o644),
    member("bin/su", b"su", mode=0o4755, uid=0, gid=42),
    member("data/", mode=0o1777, uid=100, gid=100),
    member("data/old", b"old"),
    member("data/deep/older", b"older"),
    link("lib", "usr/lib"),
    member("usr/lib/", mode=0o755),
)


def test_owners_modes_and_missing_folders() -> None:
    found = stack(BASE)
    assert found["/bin/su"] == "file 4755 0:42"
    assert found["/data"] == "dir 1777 100:100"
    assert found["/bin"] == found["/data/deep"] == "dir 755 0:0"
    assert found["/lib"] == "symlink 777 0:0"


def test_a_layer_replaces_and_adds() -> None:
    found = stack(BASE, layer(member("etc/passwd", b"new", mode=0o600), member("data/", mode=0o700), member("x/")))
    assert found["/etc/passwd"] == "file 600 0:0"
    assert found["/data"] == "dir 700 0:0" and "/data/old" in found
    assert "/x" in found


def test_a_folder_becomes_a_file_and_back() -> None:
    flat = stack(BASE, layer(member("data", b"flat")))
    assert flat["/data"].startswith("file") and "/data/old" not in flat
    again = stack(BASE, layer(member("data", b"flat")), layer(member("data/", mode=0o750)))
    assert again["/data"] == "dir 750 0:0" and "/data/old" not in again


def test_whiteouts_hide_lower_layers_only() -> None:
    assert "/data/old" not in stack(BASE, layer(member("data/.wh.old")))
    gone = stack(BASE, layer(member(".wh.data")))
    assert not any(path.startswith("/data") for path in gone)
    new, opaque = member("data/new"), member("data/.wh..wh..opq")
    for members in ((new, opaque), (opaque, new)):
        found = stack(BASE, layer(*members))
        assert [path for path in found if path.startswith("/data")] == ["/data", "/data/new"]
    both = layer(member("data/old", mode=0o600), member("data/.wh.old"))
    assert stack(BASE, both)["/data/old"] == "file 600 0:0"
    kept = stack(BASE, layer(member("data/deep/new"), member("data/.wh.deep")))
    assert "/data/deep/new" in kept and "/data/deep/older" not in kept
    # Of nothing, and in the lowest layer: nothing to hide.
    assert stack(layer(member(".wh.ghost"))) == stack(layer())


def test_a_path_through_a_link_stays_inside() -> None:
    found = stack(BASE, layer(member("lib/libc.so", b"c")))
    assert "/usr/lib/libc.so" in found and found["/lib"].startswith("symlink")
    links = link("up", "../../../../etc"), link("root", "/")
    outside = layer(*links, member("up/shadow", b"s"), member("root/here", b"h"))
    assert {"/etc/shadow", "/here"} <= stack(BASE, outside).keys()


def test_hard_links_are_one_file() -> None:
    both = Tree()
    both.apply(io.BytesIO(layer(member("a", b"content", mode=0o640), hard("b/c", "./a"), hard("d", "/b/c"))))
    assert both.find("/a") is both.find("/b/c") is both.find("/d") is not None


def test_attributes_that_programs_see_are_kept() -> None:
    info, content = member("ping", b"x")
    info.pax_headers = {"SCHILY.xattr.security.capability": "\x01", "SCHILY.xattr.security.selinux": "label"}
    one = Tree()
    one.apply(io.BytesIO(layer((info, content))))
    node = one.find("/ping")
    assert node is not None and node.xattrs == {"security.capability": b"\x01"}


def test_long_names_and_gnu_headers(tmp_path: Path) -> None:
    name = "/".join(["n" * 200] * 8)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as gnu:
        info, content = member(name, b"deep", uid=3_000_000)
        gnu.addfile(info, io.BytesIO(content))
    assert stack(out.getvalue(), layer(member("x/" + name)))[f"/{name}"] == "file 644 3000000:0"


DEVICE = {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}


def xattr(name: str, value: str) -> bytes:
    info, content = member("f")
    info.pax_headers = {f"SCHILY.xattr.{name}": value}
    return layer((info, content))


def pax(key: str, value: str) -> bytes:
    info, content = member("f")
    info.pax_headers = {key: value}
    return layer((info, content))


LOOP = [link(f"l{number}", f"l{number + 1}") for number in range(60)]

HOSTILE = {
    "leads out of it": (layer(member("../../etc/passwd")), layer(member("a/../../x")), layer(link("..", "x"))),
    "a device outside /dev": (layer(member("sda", **DEVICE)), layer(member("etc/null", type=tarfile.BLKTYPE))),
    "whiteout that is a folder": (layer(member(".wh.etc/x")),),
    "whiteout that is not empty": (layer(member(".wh.etc", b"x")), layer(link(".wh.etc", "/"))),
    "whiteout of nothing": (layer(member(".wh.")), layer(member("a/.wh...")), layer(member(".wh.."))),
    "hard link to": (
        layer(hard("a", "/etc/shadow")),
        layer(hard("a", "../outside")),
        layer(member("d/"), hard("a", "d")),
        layer(hard("a", "a")),
    ),
    "through a file or a broken link": (
        layer(member("f"), member("f/g")),
        layer(*LOOP, member("l0/x")),
        layer(link("self", "self"), member("self/x")),
        layer(link("gone", "no/../such"), member("gone/x")),
    ),
    "too long or too deep": (
        layer(member("x" * 256)),
        layer(member("/".join(["d"] * 300))),
        layer(member("/".join(["x" * 200] * 25))),
        layer(
            member("/".join(["a"] * 200) + "/"),
            link("down", "/".join(["a"] * 200)),
            member("down/" + "/".join(["b"] * 200)),
        ),
    ),
    "link that leads nowhere": (layer(link("l", "")), layer(link("l", "x" * 4096))),
    "attribute 'trusted.overlay": (xattr("trusted.overlay.redirect", "/etc"), xattr("trusted.overlay.opaque", "y")),
    "large attributes": (xattr("user.large", "x" * 20_000),),
    "root that is no folder": (layer(link(".", "x")),),
    "impossible size": (pax("size", "-1"), pax("size", "9" * 30)),
    "a file of user": (pax("uid", str(1 << 24)), layer(member("f", uid=1 << 25))),
    "impossible time": (pax("mtime", "soon"),),
    "sparse file": (pax("GNU.sparse.major", "1"), layer(member("f", type=b"S"))),
    "cut off": (BASE[:5000], layer(member("f", b"x" * 5000))[:2048], pax("size", str(1 << 40))),
    "no tar archive": (b"x" * 4096, BASE[:600] + b"\xff" * 600 + BASE[1200:]),
}


@pytest.mark.parametrize(("reason", "data"), [(reason, data) for reason, all_ in HOSTILE.items() for data in all_])
def test_what_is_refused(reason: str, data: bytes) -> None:
    with pytest.raises(ImageError, match=reason):
        stack(data)


def test_devices_below_dev_are_left_out() -> None:
    assert stack(layer(member("dev/"), member("dev/null", **DEVICE))).keys() == {"/", "/dev"}


def test_many_files_are_refused_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_MEMBERS", 1000)
    with pytest.raises(ImageError, match="more than 1000 files"):
        stack(layer(*(member(f"d/{number}") for number in range(1001))))
    monkeypatch.setattr(tree, "MAX_STEPS", 20_000)
    # Each of these whiteouts looks at all that came before it.
    with pytest.raises(ImageError, match="take too long"):
        stack(layer(*(member(f"d/{number}") for number in range(300)), *(member("d/.wh..wh..opq"),) * 300))
    # And each of these paths leads through forty links.
    with pytest.raises(ImageError, match="take too long"):
        stack(layer(member("l39/"), *LOOP[:39], *(member("l0/x"),) * 900))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_TEXT", 100_000)
    assert stack(layer(*(link(f"l{number}", "x" * 900) for number in range(100))))
    for hostile in (
        layer(*(link(f"l{number}", "x" * 900) for number in range(120))),
        layer(*(member("n" * 250 + f"/{number}") for number in range(500))),
        layer(*(member(f"{number}", pax_headers={"SCHILY.xattr.user.a": "x" * 10_000}) for number in range(11))),
    ):
        with pytest.raises(ImageError, match="names, links and attributes"):
            stack(hostile)


def test_long_paths_of_many_files_are_not_kept_together() -> None:
    found = Tree()
    folder = "/".join(["d" * 250] * 15)
    found.apply(io.BytesIO(layer(*(member(f"{folder}/{number}") for number in range(3000)))))
    tracemalloc.start()
    try:
        assert sum(1 for _ in found.walk()) == 3016
        assert tracemalloc.get_traced_memory()[1] < 3000 * len(folder) // 4
    finally:
        tracemalloc.stop()


def test_headers_are_bounded() -> None:
    with pytest.raises(ImageError, match=f"header of {tar.MAX_EXTENDED + 2048}|header of"):
        stack(pax("comment", "x" * (tar.MAX_EXTENDED + 1)))
    # Every one of these is small, and what they say would be kept until a member comes.
    one = pax("comment", "x")[:1024]
    assert stack(one * tar.MAX_HEADERS + layer(member("f")))
    with pytest.raises(ImageError, match="headers before a member"):
        stack(one * (tar.MAX_HEADERS + 1) + layer(member("f")))
    large = pax("comment", "x" * (tar.MAX_EXTENDED // 2))[: 512 + tar.MAX_EXTENDED // 2 + 512]
    with pytest.raises(ImageError, match="header of"):
        stack(large * 2 + layer(member("f")))


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def unpack(tmp_path: Path, blob: bytes, diff_id: str, room: int = 1 << 40) -> bytes:
    (tmp_path / "blob").write_bytes(blob)
    (tmp_path / "out").unlink(missing_ok=True)
    unpack_layer(tmp_path / "blob", diff_id, tmp_path / "out", room)
    return (tmp_path / "out").read_bytes()


def test_layers_are_unpacked_whatever_their_compression(tmp_path: Path) -> None:
    zstd = subprocess.run(["zstd", "-q", "-c"], input=BASE, capture_output=True, check=True).stdout
    half = len(BASE) // 2
    for blob in (BASE, gzip.compress(BASE), gzip.compress(BASE[:half]) + gzip.compress(BASE[half:]), zstd):
        assert unpack(tmp_path, blob, digest(BASE)) == BASE


def test_a_layer_that_lies_or_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="its diff_id differs"):
        unpack(tmp_path, gzip.compress(BASE), digest(BASE + b"x"))
    blob = gzip.compress(BASE)
    with pytest.raises(ImageError, match="cut off"):
        unpack(tmp_path, blob[:-9], digest(BASE))
    with pytest.raises(ImageError, match="not the gzip file"):
        unpack(tmp_path, blob[:20] + b"\xff" * 20 + blob[40:], digest(BASE))
    with pytest.raises(ImageError, match="not the zstd file"):
        unpack(tmp_path, b"\x28\xb5\x2f\xfd" + b"\xff" * 20, digest(BASE))


def test_decompression_bombs(tmp_path: Path) -> None:
    deflate = zlib.compressobj(9, wbits=31)
    bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(300)) + deflate.flush()
    with pytest.raises(ImageError, match="unpacks to more than"):
        unpack(tmp_path, bomb, digest(b""))
    most = RATIO_FREE + MAX_RATIO * len(bomb)
    assert (tmp_path / "out").stat().st_size <= most
    with pytest.raises(ImageError, match="unpacks to more than"):
        unpack(tmp_path, gzip.compress(bytes(5000)), digest(bytes(5000)), room=4999)
    zstd = subprocess.run(["zstd", "-q", "-c"], input=bytes(200 << 20), capture_output=True, check=True).stdout
    with pytest.raises(ImageError, match="unpacks to more than"):
        unpack(tmp_path, zstd, digest(b""))


def test_parts_of_a_gzip_file_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MAX_PARTS", 100)
    assert unpack(tmp_path, gzip.compress(b"x") * 100, digest(b"x" * 100)) == b"x" * 100
    with pytest.raises(ImageError, match="more than 100 parts"):
        unpack(tmp_path, gzip.compress(b"") * 101, digest(b""))
