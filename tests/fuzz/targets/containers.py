"""Container images that somebody sends: layers, compressed ones, manifests, configurations."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from pathlib import Path

from container_images import CONFIG, hard, layer, link, member
from erofs_reader import read_erofs
from jsons import edited, packet
from script import Script, demand

from vambrace.debian.erofs_writer import Entry, write_erofs
from vambrace.errors import ConfigError, ImageError
from vambrace.image.containers import tar
from vambrace.image.containers.layer import unpack_layer
from vambrace.image.containers.settings import find_user, parse_signal, read_settings
from vambrace.image.containers.source import read
from vambrace.image.containers.tree import Node, Tree
from vambrace.image.foreign import read_manifest, stated_size

FOLDER = Path(tempfile.mkdtemp())
NAMES = ("a", "b", "a/b", "a/b/c", "l", "l/x", "dev/null", ".", "/", "../a", "a/../../b", "x" * 150, "a//./b", "l/../m")
HIDDEN = (".wh.a", ".wh.b", "a/.wh.b", "a/.wh..wh..opq", ".wh..wh..opq", ".wh.", ".wh..", ".wh.a/b", ".wh..wh.plnk")
LINKS = ("a", "/a", "b", "..", "../..", "/", "l", "gone", "a/b", "")
KINDS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.CONTTYPE)
KINDS += (b"S", b"9")
PAX = ("path", "linkpath", "size", "uid", "mtime", "comment", "GNU.sparse.major", "SCHILY.xattr.user.a")
PAX += ("SCHILY.xattr.security.capability", "SCHILY.xattr.trusted.overlay.opaque")
SOUND = layer(member("a/b/c", b"content" * 99), link("l", "a"), hard("h", "a/b/c"), member("a/.wh.b"))
PACKED = gzip.compress(SOUND, mtime=0)
SAYS = {
    "os": "linux",
    "architecture": "arm64",
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(SOUND).hexdigest()}"]},
    "config": {
        **CONFIG,
        "Env": ["A=b", "C"],
        "User": "web:5",
        "WorkingDir": "/a/b",
        "StopSignal": "SIGRTMIN+1",
        "ExposedPorts": {"80/tcp": {}},
        "Healthcheck": {"Test": ["CMD", "x"], "Interval": 10**9, "Timeout": 10**9, "StartPeriod": 0, "Retries": 1},
    },
}
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:5:6::/w:\n"


def run(data: bytes) -> None:
    script = Script(data)
    script.of(WAYS)(script)


def judged(error: ImageError | ConfigError) -> None:
    demand("\n" not in error.message and len(error.message) < 2000, "an error of more than a line")


def layers(script: Script) -> None:
    """Some layers of odd members, one over the other; what is accepted is written and read again."""
    tree = Tree()
    files: list[bytes] = []
    try:
        while script.more and len(files) < 4:
            data = layer(*(_member(script) for _ in range(script.below(9))))
            if script.number() > 224:
                data = _changed(script, data)
            files.append(data)
            tree.apply(io.BytesIO(data))
    except ImageError as error:
        judged(error)
        return
    except (tarfile.TarError, ValueError, UnicodeEncodeError):
        return  # nothing that Python's own library can write
    _written(tree, files)


def raw(script: Script) -> None:
    """A layer whose bytes were changed."""
    data = _changed(script, SOUND)
    tree = Tree()
    try:
        tree.apply(io.BytesIO(data))
    except ImageError as error:
        judged(error)
        return
    _written(tree, [data])


def compressed(script: Script) -> None:
    (FOLDER / "blob").write_bytes(_changed(script, PACKED))
    (FOLDER / "out").unlink(missing_ok=True)
    room = script.of((1 << 30, 0, 100, len(SOUND), len(SOUND) - 1))
    try:
        size = unpack_layer(FOLDER / "blob", SAYS["rootfs"]["diff_ids"][0], FOLDER / "out", room)  # type: ignore[index]
    except ImageError as error:
        judged(error)
        demand(not (FOLDER / "out").exists() or (FOLDER / "out").stat().st_size <= room, "more than there is room for")
        return
    demand(size == len(SOUND) and (FOLDER / "out").read_bytes() == SOUND, "another layer than its diff_id says")


def configuration(script: Script) -> None:
    try:
        found = read_settings(json.loads(json.dumps(edited(script, SAYS))))
        demand(found.directory.startswith("/") and ".." not in found.directory.split("/"), "a folder outside")
        user = find_user(found.user, lambda _path, _most: PASSWD)
        demand(all(0 <= number <= tar.MAX_ID for number in (user.uid, user.gid, *user.groups)), "an odd user")
    except (ImageError, ConfigError) as error:
        judged(error)
    except AttributeError:
        pass  # not an object at all, which the reader of blobs refuses


def accounts(script: Script) -> None:
    data = _changed(script, PASSWD)
    with contextlib.suppress(ImageError):
        find_user(script.of(("web", "0", "5", "root:web", "")), lambda _path, _most: data)
    with contextlib.suppress(ImageError):
        demand(1 <= parse_signal(script.text(12).decode("utf-8", "replace")) <= 64, "an odd signal")


def blobs(script: Script) -> None:
    """A folder as skopeo writes it, whose manifest and configuration are odd, under digests that are right."""
    folder = FOLDER / "copied"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (folder / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    config = put(packet(script, [SAYS]), "application/vnd.oci.image.config.v1+json")
    part = put(PACKED, "application/vnd.oci.image.layer.v1.tar+gzip")
    manifest = {"schemaVersion": 2, "config": config, "layers": [part]}
    content = packet(script, [manifest])
    (folder / "manifest.json").write_bytes(content)
    try:
        demand(stated_size(read_manifest(content, "it"), "it") >= 0, "less than nothing")
    except ImageError as error:
        judged(error)
    try:
        source = read(folder)
        demand(all(path.parent == folder for path, _ in source.layers), "a blob outside of the folder")
        read_settings(source.config)
    except (ImageError, ConfigError) as error:
        judged(error)


def _member(script: Script) -> tuple[tarfile.TarInfo, bytes]:
    how = script.below(8)
    name = script.of(NAMES)
    if how == 0:
        return link(name, script.of(LINKS))
    if how == 1:
        return hard(name, script.of(LINKS))
    if how == 2:
        return member(script.of(HIDDEN))
    content = script.of((b"", b"x", b"x" * 600, b"y" * 5000)) if how != 3 else b""
    info, _ = member(name, content, mode=script.number(2), uid=script.number(script.of((1, 3, 4))))
    if how == 3:
        info.type = script.of(KINDS)
    if how == 4:
        info.pax_headers = {script.of(PAX): script.text(30).decode("utf-8", "replace")}
    return info, content


def _written(tree: Tree, files: list[bytes]) -> None:
    """The tree holds nothing from outside, and comes back from its image as it is."""

    def copy(entry: Entry, offset: int, length: int) -> bytes:
        assert isinstance(entry, Node)
        if entry.kind == tar.SYMLINK:
            return entry.link[offset : offset + length]
        data = files[entry.layer]
        demand(entry.offset + entry.size <= len(data), "a file beyond its layer")
        return data[entry.offset + offset :][:length]

    out = io.BytesIO()
    size = write_erofs(tree.root, copy, out)
    found = read_erofs(out.getvalue().ljust(size, b"\0"))
    waiting = [(b"/", tree.root)]
    count = 0
    while waiting:
        path, node = waiting.pop()
        count += 1
        file = found[path]
        same = (file.mode, file.uid, file.gid, file.mtime) == (node.mode, node.uid, node.gid, node.mtime)
        demand(same, "another file")
        for name, child in node.children.items():
            demand(name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name, "an odd name")
            demand(child.kind in (tar.FILE, tar.FOLDER, tar.SYMLINK, tar.FIFO), "a device")
            waiting.append((path.rstrip(b"/") + b"/" + name, child))
    demand(count == len(found), "files that are not in the tree")


def _changed(script: Script, data: bytes) -> bytes:
    for _ in range(1 + script.below(4)):
        at = script.number(2) % (len(data) + 1)
        data = data[:at] + script.text(12) + data[at + script.of((0, 1, 1, 2, 4, 8, 12, 512)) :]
    return _summed(data) if script.number() & 1 else data


def _summed(data: bytes) -> bytes:
    """With the checksums of its headers made right."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            total = sum(out[at : at + 148]) + 8 * 32 + sum(out[at + 156 : at + 512])
            out[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(out)


WAYS = (layers, layers, raw, compressed, configuration, accounts, blobs)
