"""Bundles: the same bits each time, and nothing believed when opened."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from config_factory import make_disk, make_kernel, make_realm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vambrace.errors import BuildError, ConfigError, ImageError
from vambrace.image import Bundle, write_bundle
from vambrace.image.bundle import MAX_SIGNATURE, sign_bundle

DISKS = [b"d" * 8192, b"e" * 8192]
Members = dict[str, bytes]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build(tmp_path, tmp_path / "a.vambrace")


def build(folder: Path, out: Path, **changes: Any) -> Bundle:
    config = make_realm(
        disks=tuple(
            make_disk(name, sha256=hashlib.sha256(data).hexdigest())
            for name, data in zip(("base", "apps"), DISKS, strict=True)
        ),
        **changes,
    )
    parts = {"kernel": make_kernel(), "initrd": b"initrd" * 1000, "disk0": DISKS[0], "disk1": DISKS[1]}
    for name, data in parts.items():
        (folder / name).write_bytes(data)
    return write_bundle(out, config, folder / "kernel", folder / "initrd", [folder / "disk0", folder / "disk1"])


def test_round_trip(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.config.name == "patients"
    assert bundle.kernel.read() == make_kernel()
    target = tmp_path / "unpacked"
    target.mkdir()
    parts = bundle.unpack(target)
    assert parts.config_path.read_bytes() == bundle.config.encode()
    assert parts.initrd_path.read_bytes() == b"initrd" * 1000
    assert [path.read_bytes() for path in parts.disk_paths] == DISKS
    shown = bundle.inspect()
    assert shown["measurement"] == bundle.measurement().hex()
    json.dumps(shown)


def test_the_same_inputs_give_the_same_bits(bundle: Bundle, tmp_path: Path) -> None:
    again = build(tmp_path, tmp_path / "b.vambrace")
    assert again.path.read_bytes() == bundle.path.read_bytes()


def test_standard_tar_reads_it(bundle: Bundle) -> None:
    with tarfile.open(bundle.path) as tar:
        assert tar.getnames()[:2] == ["oci-layout", "index.json"]
        assert all(member.isreg() and member.mtime == 0 and member.uid == 0 for member in tar)


def test_measurement_covers_the_configuration(bundle: Bundle, tmp_path: Path) -> None:
    other = build(tmp_path, tmp_path / "c.vambrace", cmdline="quiet x")
    assert other.measurement() != bundle.measurement()
    assert len(bundle.measurement()) == 32


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_bit_is_found(bundle: Bundle, data: st.DataObject) -> None:
    content = bytearray(bundle.path.read_bytes())
    # The trailer's and the paddings' zeros, and owner fields and times of headers, mean nothing.
    with tarfile.open(bundle.path) as tar:
        ranges = [(member.offset_data, member.size) for member in tar]
    start, size = data.draw(st.sampled_from(ranges))
    content[start + data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    broken = bundle.path.with_name("broken")
    broken.write_bytes(content)
    try:
        opened = Bundle.open(broken)
    except (ImageError, ConfigError):
        return
    # Only the index has bytes that mean nothing: the manifest that it names is what counts.
    assert start == ranges[1][0]
    assert opened.manifest_digest == bundle.manifest_digest


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=2000))
def test_arbitrary_bytes_are_no_bundle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise"
    path.write_bytes(content)
    with pytest.raises(ImageError):
        Bundle.open(path)


def repack(bundle: Bundle, change: Callable[[Members], None]) -> Path:
    with tarfile.open(bundle.path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    change(members)
    out = bundle.path.with_name("changed")
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out


def edit_manifest(edit: Callable[[dict[str, Any]], None]) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        index = json.loads(members["index.json"])
        entry = index["manifests"][0]
        manifest = json.loads(members.pop("blobs/sha256/" + entry["digest"][7:]))
        edit(manifest)
        content = json.dumps(manifest).encode()
        digest = hashlib.sha256(content).hexdigest()
        entry["digest"], entry["size"] = f"sha256:{digest}", len(content)
        members["index.json"] = json.dumps(index).encode()
        members[f"blobs/sha256/{digest}"] = content

    return change


def test_repacked_by_others_is_fine(bundle: Bundle) -> None:
    assert Bundle.open(repack(bundle, lambda members: None)).measurement() == bundle.measurement()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"../evil": b"x"}), "nothing refers to"),
        (lambda m: m.update({"blobs/sha256/" + "0" * 64: b"x"}), "nothing refers to"),
        (lambda m: m.pop("oci-layout"), "no layout"),
        (lambda m: m.update({"index.json": b"{"}), "not JSON"),
        (lambda m: m.update({"index.json": b"[]"}), "not a JSON object"),
        (lambda m: m.update({"index.json": b'{"manifests":[]}'}), "exactly one"),
        (lambda m: m.update({"index.json": b" " * 70000}), "larger"),
        (lambda m: m.update({f"f{i}": b"" for i in range(40)}), "more than"),
        (edit_manifest(lambda m: m.update(artifactType="x")), "vambrace"),
        (edit_manifest(lambda m: m["layers"].pop()), "kernel, an initrd"),
        (edit_manifest(lambda m: m["layers"].reverse()), "type"),
        (
            edit_manifest(lambda m: m["layers"].__setitem__(2, m["layers"][3])),
            "not the one of the configuration",
        ),
        (
            edit_manifest(lambda m: m["layers"][1].update({key: m["layers"][0][key] for key in ("digest", "size")})),
            "also another part",
        ),
        (edit_manifest(lambda m: m["layers"][0].update(size=1)), "stated size"),
        (edit_manifest(lambda m: m["layers"][0].update(digest="sha256:../../x")), "SHA-256"),
        (edit_manifest(lambda m: m["layers"][0].update(digest="sha256:" + "0" * 64)), "no kernel"),
    ],
)
def test_hostile_bundles(bundle: Bundle, change: Callable[[Members], None], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        Bundle.open(repack(bundle, change))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_only_regular_files(bundle: Bundle, kind: bytes) -> None:
    info = tarfile.TarInfo("blobs/link")
    info.type, info.linkname = kind, "/etc/passwd"
    path = bundle.path.with_name("special")
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bundle.path.read_bytes())
    with pytest.raises(ImageError, match="regular"):
        Bundle.open(path)


def test_a_member_twice(bundle: Bundle) -> None:
    content = bundle.path.read_bytes()
    path = bundle.path.with_name("twice")
    path.write_bytes(content[:1024] + content)
    with pytest.raises(ImageError, match="twice"):
        Bundle.open(path)


def test_nothing_is_behind_its_end(bundle: Bundle) -> None:
    content = bundle.path.read_bytes()
    path = bundle.path.with_name("longer")
    for more in (b"\x80", bytes(512) + content, bytes(20 * 512)):
        path.write_bytes(content + more)
        with pytest.raises(ImageError, match="behind its end"):
            Bundle.open(path)
    path.write_bytes(content + bytes(18 * 512))
    assert Bundle.open(path).manifest_digest == bundle.manifest_digest


def test_cut_off(bundle: Bundle) -> None:
    content = bundle.path.read_bytes()
    path = bundle.path.with_name("cut")
    for length in (0, 100, 512, 5000, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(ImageError):
            Bundle.open(path)


def test_changed_after_opening(bundle: Bundle, tmp_path: Path) -> None:
    with bundle.path.open("r+b") as file:
        file.seek(bundle.initrd.offset)
        file.write(b"X")
    with pytest.raises(ImageError, match="digest"):
        (tmp_path / "target").mkdir()
        bundle.unpack(tmp_path / "target")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(ImageError, match="directory"):
        build(tmp_path, tmp_path / "none" / "out")


# --- signatures -------------------------------------------------------------------------------------------


def test_a_signature_leaves_the_image_what_it_was(bundle: Bundle, tmp_path: Path) -> None:
    signed = sign_bundle(bundle, b"signature", tmp_path / "signed.vambrace")
    assert signed.signature is not None and signed.signature.read() == b"signature"
    assert (signed.manifest_digest, signed.config) == (bundle.manifest_digest, bundle.config)
    # Once more: another takes its place; the same gives the same bits.
    again = sign_bundle(signed, b"another", tmp_path / "again.vambrace")
    assert again.signature is not None and again.signature.read() == b"another"
    back = sign_bundle(again, b"signature", tmp_path / "back.vambrace")
    assert back.path.read_bytes() == signed.path.read_bytes()
    folder = tmp_path / "unpacked"
    folder.mkdir()
    path = signed.unpack(folder).signature_path
    assert path is not None and path.read_bytes() == b"signature"
    (tmp_path / "plain").mkdir()
    assert bundle.unpack(tmp_path / "plain").signature_path is None


@pytest.mark.parametrize("size", [MAX_SIGNATURE, MAX_SIGNATURE + 1])
def test_a_signature_has_a_bound(bundle: Bundle, tmp_path: Path, size: int) -> None:
    if size <= MAX_SIGNATURE:
        sign_bundle(bundle, bytes(size), tmp_path / "signed.vambrace")
        return
    with pytest.raises(ImageError, match="larger than"):
        sign_bundle(bundle, bytes(size), tmp_path / "signed.vambrace")


def test_only_files_are_replaced(tmp_path: Path, bundle: Bundle) -> None:
    """A device stays one, also where whoever builds may replace it: ``--output /dev/null``."""
    os.mkfifo(tmp_path / "pipe")
    before = set(tmp_path.iterdir())
    for name, says in (("pipe", "pipe is no regular file"), ("no/folder", "no is not a folder")):
        with pytest.raises(BuildError, match=says):
            sign_bundle(bundle, b"signature", tmp_path / name)
    assert (tmp_path / "pipe").is_fifo() and set(tmp_path.iterdir()) == before
