"""Images that would have the builder go elsewhere, or take more than they say, by the real skopeo."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container_images import image, layer, member
from fakes.registry import MANIFEST, HostileRegistry, hostile_registry

from vambrace.errors import ImageError, RegistryError
from vambrace.image import foreign
from vambrace.image.containers import read_image, source
from vambrace.image.containers.source import look, reference
from vambrace.image.oci import INDEX
from vambrace.image.skopeo import Skopeo, _without_network

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
FILES = layer(member("bin/tool", b"tool"))
ELSEWHERE = r"is elsewhere"


@pytest.fixture
def server() -> Iterator[HostileRegistry]:
    with hostile_registry() as server:
        yield server


def stored(folder: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    (folder / "blobs/sha256" / digest).write_bytes(content)
    return digest


def layout(
    folder: Path, server: HostileRegistry, *, key: str = "urls", twice: bool = False, nested: bool = False
) -> str:
    """An image whose only layer is at the server and nowhere else; its descriptor says so under ``key``."""
    image(folder, FILES)
    index = json.loads((folder / "index.json").read_text())
    place = folder / "blobs/sha256" / index["manifests"][0]["digest"].removeprefix("sha256:")
    manifest = json.loads(place.read_text())
    blob = folder / "blobs/sha256" / manifest["layers"][0]["digest"].removeprefix("sha256:")
    server.contents["/secret"] = blob.read_bytes()
    blob.unlink()
    there = {key: [f"http://{server.name}/secret"]}
    text = json.dumps(manifest | {"layers": [{**manifest["layers"][0], **there}]})
    if twice:
        # Go keeps of an element what a later one of the same place does not say.
        text = json.dumps({"layers": [there]})[:-1] + ", " + json.dumps(manifest)[1:]
    content = text.encode()
    found = {"mediaType": MANIFEST, "digest": f"sha256:{stored(folder, content)}", "size": len(content)}
    if nested:
        inner = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [found]}).encode()
        found = {"mediaType": INDEX, "digest": f"sha256:{stored(folder, inner)}", "size": len(inner)}
    index["manifests"] = [index["manifests"][0] | found]
    (folder / "index.json").write_text(json.dumps(index))
    return index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]


@pytest.mark.parametrize(
    "how", [{}, {"key": "URLs"}, {"key": "url\u017f"}, {"twice": True}, {"nested": True}], ids=lambda how: str(how)
)
def test_a_layer_that_is_elsewhere(tmp_path: Path, server: HostileRegistry, how: dict[str, Any]) -> None:
    name = layout(tmp_path / "image", server, **how)
    with pytest.raises(ImageError):
        read_image(f"oci:{tmp_path}/image:{name}", tmp_path / "work")
    assert server.requests == []


def test_an_archive_with_a_layer_that_is_elsewhere(tmp_path: Path, server: HostileRegistry) -> None:
    name = layout(tmp_path / "image", server)
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        tar.add(tmp_path / "image", ".")
    for place in (f"oci-archive:{tmp_path}/image.tar:{name}", reference("image.tar", tmp_path)):
        with pytest.raises(ImageError, match=ELSEWHERE):
            read_image(place, tmp_path / f"work-{len(place)}")
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        tar.add(tmp_path / "image", ".")
        tar.addfile(member("blobs/sha256/other", type=tarfile.SYMTYPE, linkname="../../index.json")[0])
    with pytest.raises(ImageError, match="holds links"):
        read_image(f"oci-archive:{tmp_path}/links.tar:{name}", tmp_path / "links")
    assert server.requests == []


@pytest.mark.skipif(not _without_network(), reason="this machine gives nobody a network namespace")
def test_what_is_here_is_copied_without_a_network(
    tmp_path: Path, server: HostileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever would have been missed."""
    name = layout(tmp_path / "image", server)
    monkeypatch.setattr(foreign, "check_local", lambda source: None)
    with pytest.raises(Exception, match="oci:"):
        read_image(f"oci:{tmp_path}/image:{name}", tmp_path / "work")
    assert server.requests == []


def test_an_honest_image_without_a_network_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_one = read_image(image(tmp_path / "image", FILES), tmp_path / "with")
    monkeypatch.setattr("vambrace.image.skopeo._without_network", lambda: ())
    assert read_image(image(tmp_path / "again", FILES), tmp_path / "without").verity == with_one.verity


# Registries


def manifest(*layers: dict[str, Any], **more: Any) -> bytes:
    config = {"mediaType": CONFIG, "digest": "sha256:" + "c" * 64, "size": 100}
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": list(layers)}
    return json.dumps(value | more).encode()


def blob(size: Any = 1 << 10, digest: str = "d", **more: Any) -> dict[str, Any]:
    return {"mediaType": LAYER, "digest": f"sha256:{digest * 64}", "size": size, **more}


def of(server: HostileRegistry, content: bytes) -> str:
    server.contents["/manifests/1"] = content
    return f"docker://{server.name}/team/tool:1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (manifest(blob(urls=["http://127.0.0.1/"])), ELSEWHERE),
        (manifest(blob(Urls=["http://127.0.0.1/"])), ELSEWHERE),
        (manifest(blob(mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar")), ELSEWHERE),
        (manifest(blob(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")), ELSEWHERE),
        (manifest(blob(16 << 30), blob(16 << 30), blob()), "32768 MiB"),
        (manifest(blob("5")), "how large"),
        (manifest(blob(-1)), "how large"),
        (manifest(layers=None), "how large"),
        (manifest(blob())[:-1] + b', "Layers": []}', "twice"),
        (manifest(manifests=[]), "index as well"),
        (b"[]", "no JSON object"),
        (b"[" * 100000, "not JSON"),
    ],
)
def test_a_manifest_that_is_refused(server: HostileRegistry, content: bytes, message: str) -> None:
    """Before anything else is asked for."""
    place = of(server, content)
    with pytest.raises(ImageError, match=message):
        look(place, Skopeo(tls_verify=False))
    assert not [request for request in server.requests if "/blobs/" in request]


def test_what_a_registry_states(server: HostileRegistry) -> None:
    content = manifest(blob(1000), blob(24, "e"))
    wanted = {hashlib.sha256(content).hexdigest(): 1124}
    assert look(of(server, content), Skopeo(tls_verify=False)) == wanted
    # Of an index those that could be meant, whichever skopeo takes.
    theirs, odd = manifest(blob(urls=["http://127.0.0.1/"])), manifest(blob(7))
    images = {"linux/arm64": content, "linux/amd64": theirs, "unknown/unknown": theirs, "": odd}
    entries = []
    for platform, each in images.items():
        digest = f"sha256:{hashlib.sha256(each).hexdigest()}"
        server.contents[f"/manifests/{digest}"] = each
        os, _, architecture = platform.partition("/")
        kind = {"platform": {"os": os, "architecture": architecture}} if platform else {}
        entries.append({"mediaType": MANIFEST, "digest": digest, "size": len(each), **kind})

    def listed(*entries: dict[str, Any]) -> str:
        index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
        server.answers["/manifests/1"] = lambda handler: handler.give(index, INDEX)
        return f"docker://{server.name}/team/tool:1"

    found = look(listed(*entries), Skopeo(tls_verify=False))
    assert found == wanted | {hashlib.sha256(odd).hexdigest(): 107}
    for wrong in (entries[1:3], [entries[0] | {"digest": f"sha256:{n:064x}"} for n in range(17)]):
        with pytest.raises(ImageError, match="images for linux/arm64"):
            look(listed(*wrong), Skopeo(tls_verify=False))
    server.contents[f"/manifests/{entries[0]['digest']}"] = odd
    with pytest.raises((ImageError, RegistryError), match="another manifest|digest"):
        look(listed(entries[0]), Skopeo(tls_verify=False))


def test_more_than_was_stated(tmp_path: Path, server: HostileRegistry) -> None:
    """Layers without end, each of which could be as large as one may be: what is written is counted."""
    place = of(server, manifest(*(blob(1 << 10, digest) for digest in "def")))
    for digest in "def":
        server.answers[f"sha256:{digest * 64}"] = lambda handler: handler.endlessly("application/octet-stream")
    (tmp_path / "copy").mkdir()
    obtain = Skopeo(tls_verify=False).obtain
    with pytest.raises(RegistryError, match="more than its manifest states"):
        obtain(place, tmp_path / "copy", architecture="arm64", largest=source.MAX_BLOB, total=4096, seconds=600)
    assert server.sent < 8 << 30 and [path.name for path in tmp_path.iterdir()] == ["copy"]
