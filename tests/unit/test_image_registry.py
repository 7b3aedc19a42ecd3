"""Bundles in registries: Debian's own registry with TLS on the loopback, and one that lies."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from config_factory import make_disk, make_kernel, make_realm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from docker_registry import Registry, running_registry
from registry import MANIFEST, Handler, HostileRegistry, hostile_registry
from test_image_bundle import DISKS, build

from vambrace.attest.cosign import sign_manifest, verify_manifest
from vambrace.attest.suites import generate, private_pem
from vambrace.cli.main import main
from vambrace.errors import ConfigError, ImageError, RegistryError, SignatureInvalid, UsageError
from vambrace.image import Bundle, write_bundle
from vambrace.image import registry as registries
from vambrace.image.registry import pull, push
from vambrace.image.remote_images import Reference, look
from vambrace.image.skopeo import MAX_MANIFEST, Skopeo
from vambrace.suite import NIST, SM


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@dataclass
class Key:
    private: Path
    public: Path


def make_key(folder: Path, name: str) -> Key:
    key = generate(NIST)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    made = Key(folder / f"{name}.pem", folder / f"{name}.pub")
    made.private.write_bytes(private_pem(key))
    made.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return made


@pytest.fixture
def key(tmp_path: Path) -> Key:
    return make_key(tmp_path, "owner")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build(tmp_path, tmp_path / "patients.vambrace")


def run(*words: object) -> int:
    return main([str(word) for word in words])


# References


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("docker://registry.example.org/a/b:1.0", ("registry.example.org/a/b", "1.0", "")),
        ("docker://localhost:5000/a", ("localhost:5000/a", "latest", "")),
        (f"docker://h/a@sha256:{'ab' * 32}", ("h/a", "", "ab" * 32)),
    ],
)
def test_references(text: str, means: tuple[str, str, str]) -> None:
    reference = Reference.parse(text)
    assert (reference.name, reference.tag, reference.digest) == means
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        *("", "docker://", "docker://host", "a/b:1", "oci:folder", "docker://h/A:1", "docker://h/a:1 --x"),
        *(f"docker://h/a:1@sha256:{'ab' * 32}", "docker://h/a@sha256:ab", "docker://user:pw@h/a", "docker://h//a", "docker://h/../a"),
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError, match="no image in a registry"):
        Reference.parse(text)


# Debian's registry


def test_pushed_and_pulled_are_the_same_bytes(registry: Registry, bundle: Bundle, key: Key, tmp_path: Path) -> None:
    place = f"docker://{registry.name}/same:1"
    assert run("image", "sign", bundle.path, "--key", key.private) == 0
    assert run("image", "push", bundle.path, place, *registry.options) == 0
    assert run("image", "pull", place, "--key", key.public, "-o", tmp_path / "got", *registry.options) == 0
    assert (tmp_path / "got").read_bytes() == bundle.path.read_bytes()
    # Pushed by its digest's tag or not, the registry knows the digest that the bundle had on this machine.
    digest = f"docker://{registry.name}/same@sha256:{bundle.manifest_digest}"
    assert run("image", "pull", digest, "-o", tmp_path / "again", *registry.options) == 0
    assert (tmp_path / "again").read_bytes() == bundle.path.read_bytes()


def unheard(folder: Path, cmdline: str = "quiet") -> Bundle:
    """A bundle whose parts no other test has sent: a registry takes them from any of its repositories."""
    parts = {"kernel": make_kernel()[:-8] + b"unheard!", "initrd": b"unheard" * 999, "disk": b"unheard!" * 1024}
    for name, data in parts.items():
        (folder / name).write_bytes(data)
    disks = (make_disk("base", sha256=hashlib.sha256(parts["disk"]).hexdigest()),)
    config = make_realm(disks=disks, cmdline=cmdline)
    return write_bundle(folder / cmdline, config, folder / "kernel", folder / "initrd", [folder / "disk"])


def test_what_the_registry_has_is_not_sent_again(registry: Registry, tmp_path: Path) -> None:
    bundle = unheard(tmp_path)
    push(bundle, Reference.parse(f"docker://{registry.name}/layers:1"), registry.skopeo)
    # Configuration, kernel, initrd and disk; then nothing; then another configuration, and nothing else.
    assert registry.uploads("layers") == 4
    push(bundle, Reference.parse(f"docker://{registry.name}/layers:2"), registry.skopeo)
    assert registry.uploads("layers") == 4
    changed = unheard(tmp_path, "other")
    push(changed, Reference.parse(f"docker://{registry.name}/layers:3"), registry.skopeo)
    assert registry.uploads("layers") == 5


def test_a_registry_s_signature(registry: Registry, bundle: Bundle, key: Key, tmp_path: Path) -> None:
    """As cosign makes it; a second signer's goes beside it, and another key's is none."""
    place, out = f"docker://{registry.name}/signed:1", tmp_path / "got"
    other = make_key(tmp_path, "other")
    pulling = ["image", "pull", place, "-o", out, *registry.options]
    assert run("image", "push", bundle.path, place, "--sign", key.private, *registry.options) == 0
    assert run(*pulling, "--key", other.public) == 4 and not out.exists()
    assert run("image", "push", bundle.path, place, "--sign", other.private, *registry.options) == 0
    for each in (key, other):
        assert run(*pulling, "--key", each.public) == 0
        assert out.read_bytes() == bundle.path.read_bytes()
        out.unlink()
    # What standard tools read there.
    tag = f"docker://{registry.name}/signed:sha256-{bundle.manifest_digest}.sig"
    raw = registry.skopeo.manifest(tag)
    assert raw is not None
    layers = json.loads(raw)["layers"]
    assert [layer["mediaType"] for layer in layers] == ["application/vnd.dev.cosign.simplesigning.v1+json"] * 2
    assert all("dev.cosignproject.cosign/signature" in layer["annotations"] for layer in layers)


def test_an_image_that_nobody_signed(registry: Registry, bundle: Bundle, key: Key, tmp_path: Path) -> None:
    place, out = f"docker://{registry.name}/nobody:1", tmp_path / "got"
    push(bundle, Reference.parse(place), registry.skopeo)
    pulling = ["image", "pull", place, "-o", out, *registry.options]
    assert run(*pulling, "--key", key.public) == 4
    assert run(*pulling) == 2
    assert not out.exists() and not list(tmp_path.glob(".vambrace-*"))
    assert run(*pulling, "--unverified") == 0 and out.exists()


def test_where_nothing_can_be_written(registry: Registry, bundle: Bundle, tmp_path: Path) -> None:
    """The place of a bundle is no folder, or a folder stands where the bundle would be."""
    place = f"docker://{registry.name}/written:1"
    push(bundle, Reference.parse(place), registry.skopeo)
    pulling = ["image", "pull", place, "--unverified", *registry.options, "-o"]
    assert run(*pulling, tmp_path / "none/got") == 2
    (tmp_path / "taken").mkdir()
    assert run(*pulling, tmp_path / "taken") == 6
    assert not list(tmp_path.glob(".vambrace-*"))


def test_a_policy_of_skopeo_s(registry: Registry, bundle: Bundle, tmp_path: Path) -> None:
    place, out = f"docker://{registry.name}/policy:1", tmp_path / "got"
    push(bundle, Reference.parse(place), registry.skopeo)
    pulling = ["image", "pull", place, "-o", out, "--policy", tmp_path / "policy.json", *registry.options]
    (tmp_path / "policy.json").write_text('{"default": [{"type": "reject"}]}')
    assert run(*pulling) == 11 and not out.exists()
    accepts = {"docker": {f"{registry.name}/policy": [{"type": "insecureAcceptAnything"}]}}
    (tmp_path / "policy.json").write_text(json.dumps({"default": [{"type": "reject"}], "transports": accepts}))
    assert run(*pulling) == 0 and out.exists()


def test_a_remote_image_is_inspected(
    registry: Registry, bundle: Bundle, key: Key, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its disks; the owner's signature stays one when the image is signed again."""
    place = f"docker://{registry.name}/inspected:1"
    for _ in range(2):
        assert run("image", "sign", bundle.path, "--key", key.private) == 0
        assert run("image", "push", bundle.path, place, "--sign", key.private, *registry.options) == 0
    capsys.readouterr()
    sent = registry.log.read_text()
    assert run("image", "inspect", place, "--json", *registry.options) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["digest"] == f"sha256:{bundle.manifest_digest}" and shown["name"] == "patients"
    assert shown["signatures"] == {"owner": True, "cosign": 2}
    assert [part["size"] for part in shown["parts"][3:]] == [len(disk) for disk in DISKS]
    fetched = registry.log.read_text().removeprefix(sent)
    assert not [disk for disk in bundle.disks if f"GET /v2/inspected/blobs/sha256:{disk.digest}" in fetched]
    tag = f"docker://{registry.name}/inspected:sha256-{bundle.manifest_digest}"
    assert len(json.loads(registry.skopeo.manifest(tag) or b"")["manifests"]) == 1


def test_credentials_and_certificates(
    registry: Registry, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"docker://{registry.name}/closed:1"
    (tmp_path / "empty.json").write_text("{}")
    certificates = registry.options[:2]
    assert run("image", "push", bundle.path, place, *certificates, "--authfile", tmp_path / "empty.json") == 11
    assert "credentials" in capsys.readouterr().err
    assert run("image", "push", bundle.path, place, "--authfile", registry.authfile) == 11
    assert "certificate" in capsys.readouterr().err
    assert run("image", "pull", place, "--unverified", *registry.options) == 3
    assert "no such image" in capsys.readouterr().err
    assert run("image", "push", bundle.path, place.replace(":1", f"@sha256:{'ab' * 32}"), *registry.options) == 2


# A registry that lies


@pytest.fixture
def hostile(bundle: Bundle, tmp_path: Path) -> Iterator[HostileRegistry]:
    """It has the bundle."""
    with hostile_registry() as server:
        layout = registries.Layout(tmp_path / "laid-out")
        registries._lay_out(bundle, layout)
        for blob in (layout.folder / "blobs/sha256").iterdir():
            kind = "manifests" if blob.name == bundle.manifest_digest else "blobs"
            server.contents[f"/{kind}/sha256:{blob.name}"] = blob.read_bytes()
        server.contents["/manifests/1"] = layout.blob(bundle.manifest_digest).read_bytes()
        yield server


def fetch(server: HostileRegistry, out: Path) -> Bundle:
    skopeo = Skopeo(tls_verify=False)
    return pull(look(Reference.parse(f"docker://{server.name}/patients:1"), skopeo), out, skopeo)


def refused(server: HostileRegistry, tmp_path: Path, says: str, kind: type[Exception] = RegistryError) -> None:
    """Pulling fails with one clear line and leaves nothing."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(kind, match=says) as caught:
        fetch(server, tmp_path / "got")
    assert "\n" not in str(caught.value) and getattr(caught.value, "hint", "")
    assert sorted(tmp_path.iterdir()) == before


def change(server: HostileRegistry, act: Callable[[dict[str, Any]], object]) -> None:
    """Another manifest under the tag, consistent in itself."""
    manifest = json.loads(server.contents["/manifests/1"])
    act(manifest)
    data = json.dumps(manifest).encode()
    server.contents["/manifests/1"] = data
    server.contents[f"/manifests/sha256:{hashlib.sha256(data).hexdigest()}"] = data


def test_the_fake_is_a_registry(hostile: HostileRegistry, bundle: Bundle, tmp_path: Path) -> None:
    assert fetch(hostile, tmp_path / "got").path.read_bytes() == bundle.path.read_bytes()


def test_a_blob_that_is_another(hostile: HostileRegistry, bundle: Bundle, tmp_path: Path) -> None:
    end = f"/blobs/sha256:{bundle.initrd.digest}"
    hostile.contents[end] = hostile.contents[end][:-1] + b"X"
    refused(hostile, tmp_path, "not the digest asked for")


def test_a_blob_without_end(hostile: HostileRegistry, bundle: Bundle, tmp_path: Path) -> None:
    """No more is written than the largest part that the manifest states."""
    hostile.answers[f"/blobs/sha256:{bundle.initrd.digest}"] = lambda handler: handler.endlessly("x/y")
    refused(hostile, tmp_path, "more than its manifest states")
    assert hostile.sent < 64 << 20


def test_a_manifest_without_end(hostile: HostileRegistry, tmp_path: Path) -> None:
    hostile.answers["/manifests/1"] = lambda handler: handler.endlessly(MANIFEST)
    refused(hostile, tmp_path, "manifest|exceed|large")
    assert hostile.sent < 64 << 20


def test_a_large_manifest(hostile: HostileRegistry, tmp_path: Path) -> None:
    change(hostile, lambda manifest: manifest.update(annotations={"x": "x" * MAX_MANIFEST}))
    refused(hostile, tmp_path, "its manifest has [0-9]+ bytes")


def test_another_manifest_for_a_digest(hostile: HostileRegistry, bundle: Bundle, tmp_path: Path) -> None:
    """A registry that gives one manifest to be looked at, and another to be fetched."""
    change(hostile, lambda manifest: manifest["layers"].reverse())
    end = f"/manifests/sha256:{hashlib.sha256(hostile.contents['/manifests/1']).hexdigest()}"
    hostile.contents[end] = hostile.contents[f"/manifests/sha256:{bundle.manifest_digest}"]
    refused(hostile, tmp_path, "digest")


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda m: m.update(artifactType="application/x"), "no image of vambrace, but application/x"),
        (lambda m: m.pop("artifactType"), "no image of vambrace"),
        (lambda m: m.update(layers=[]), "not the parts"),
        (lambda m: m.update(layers=m["layers"] * 20), "not the parts"),
        (lambda m: m["layers"][0].update(size=1 << 40), "states [0-9]+ bytes of kernel"),
        (lambda m: m["layers"][0].update(size=-1), "states -1 bytes"),
        (lambda m: m["layers"][0].update(size="1"), "no digest and size"),
        (lambda m: m["layers"][0].update(digest="sha256:../../x"), "no digest and size"),
        (lambda m: m["layers"].__setitem__(0, 7), "no digest and size"),
        (lambda m: m.update(config=None), "no digest and size"),
    ],
)
def test_manifests_that_are_none_of_ours(
    hostile: HostileRegistry, tmp_path: Path, act: Callable[[dict[str, Any]], object], says: str
) -> None:
    change(hostile, act)
    refused(hostile, tmp_path, says, ImageError)
    assert not [request for request in hostile.requests if "/blobs/" in request]


def test_parts_in_another_order(hostile: HostileRegistry, tmp_path: Path) -> None:
    """Everything has its digest, and yet it is no bundle."""
    change(hostile, lambda manifest: manifest["layers"].reverse())
    refused(hostile, tmp_path, "must be of type|larger than", ImageError)


def test_what_is_no_manifest(hostile: HostileRegistry, tmp_path: Path) -> None:
    for content in (b"[]", b"{", b"\xff", b'{"a":1,"a":2}'):
        hostile.contents["/manifests/1"] = content
        with pytest.raises((ImageError, RegistryError)):
            fetch(hostile, tmp_path / "got")


def test_redirects_without_end(hostile: HostileRegistry, bundle: Bundle, tmp_path: Path) -> None:
    def around(handler: Handler) -> None:
        handler.redirect(handler.path)

    hostile.answers[f"/blobs/sha256:{bundle.kernel.digest}"] = around
    refused(hostile, tmp_path, "redirect")


def test_a_redirect_to_another_place(hostile: HostileRegistry, bundle: Bundle, tmp_path: Path) -> None:
    """As registries send to their stores: what comes from there must have its digest, and hears no credentials."""
    with hostile_registry() as store:
        end = f"/blobs/sha256:{bundle.kernel.digest}"
        hostile.answers[end] = lambda handler: handler.redirect(f"http://{store.name}/store{end}")
        store.contents[end] = b"another kernel"
        refused(hostile, tmp_path, "not the digest asked for")
        store.contents[end] = hostile.contents[end]
        assert fetch(hostile, tmp_path / "got").path.read_bytes() == bundle.path.read_bytes()


@pytest.mark.parametrize("payload", [b"", b"{}", b"[1]", b"\xff", b'{"critical": 7}', b"[" * 5000])
def test_signatures_that_are_none(payload: bytes) -> None:
    private = generate(NIST)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    signature = base64.b64encode(private.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()
    with pytest.raises(SignatureInvalid, match="another image"):
        verify_manifest(private.public_key(), "ab" * 32, payload, signature)
    for other in ("", "x", "A" * 500, None, 7, base64.b64encode(b"0").decode()):
        with pytest.raises(SignatureInvalid, match="not by this key"):
            verify_manifest(private.public_key(), "ab" * 32, payload, other)


def test_a_signature_binds_one_digest_and_key() -> None:
    private, other = generate(NIST), generate(NIST)
    payload, signature = sign_manifest(private, "ab" * 32, "host/name")
    verify_manifest(private.public_key(), "ab" * 32, payload, signature)
    with pytest.raises(SignatureInvalid, match="another image"):
        verify_manifest(private.public_key(), "cd" * 32, payload, signature)
    with pytest.raises(SignatureInvalid, match="not by this key"):
        verify_manifest(other.public_key(), "ab" * 32, payload, signature)
    with pytest.raises(SignatureInvalid, match="not by this key"):
        verify_manifest(private.public_key(), "ab" * 32, payload + b" ", signature)
    with pytest.raises(ConfigError, match="ECDSA"):
        sign_manifest(generate(SM), "ab" * 32, "host/name")
