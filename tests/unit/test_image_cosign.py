"""Signatures in registries, between vambrace and the programs whose form they have: Debian 13's cosign and skopeo.

These are programs for arm64, unpacked and run under user-mode emulation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_registry import Registry, running_registry
from test_image_bundle import build
from test_image_registry import make_key, run

from vambrace.debian import root
from vambrace.debian.archive import Archive
from vambrace.debian.cache import Cache
from vambrace.image import Bundle
from vambrace.image.packages import lock_path, locked_packages

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both programs, with what they need."""
    folder, directory = tmp_path_factory.mktemp("programs"), Cache().root / "archive"
    packages = locked_packages(["cosign", "skopeo"], folder / "tools.yaml", directory)
    files = Archive(directory, lock_path(folder / "tools.yaml")).fetch(packages)
    root.unpack(files, folder / "tree")
    return folder / "tree"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return build(tmp_path, tmp_path / "patients.vambrace")


def foreign(tree: Path, registry: Registry, folder: Path, program: str, *words: object) -> bool:
    """Whether one of the programs succeeds."""
    (folder / "docker").mkdir(exist_ok=True)
    shutil.copyfile(registry.authfile, folder / "docker/config.json")
    trust = {"SSL_CERT_FILE": str(registry.certificates / "ca.crt"), "DOCKER_CONFIG": str(folder / "docker")}
    command = ["qemu-aarch64-static", "-L", str(tree), str(tree / "usr/bin" / program), *map(str, words)]
    surroundings = {**os.environ, **trust, "COSIGN_PASSWORD": "secret"}
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, timeout=300, check=False)
    return done.returncode == 0


def test_cosign_and_vambrace(registry: Registry, tree: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Each verifies what the other one signed, and both signatures are there in the end."""
    image, out = f"{registry.name}/cosign:1", tmp_path / "got"
    key, other = make_key(tmp_path, "owner"), make_key(tmp_path, "other")

    def cosign(*words: object) -> bool:
        return foreign(tree, registry, tmp_path, "cosign", *words)

    assert run("image", "push", bundle.path, f"docker://{image}", *registry.options) == 0
    assert cosign("generate-key-pair", "--output-key-prefix", "theirs")
    assert cosign("sign", "--yes", "--tlog-upload=false", "--key", "theirs.key", image)
    pulling = ["image", "pull", f"docker://{image}", "-o", out, *registry.options, "--key"]
    assert run(*pulling, tmp_path / "theirs.pub") == 0 and out.read_bytes() == bundle.path.read_bytes()
    assert run("image", "push", bundle.path, f"docker://{image}", "--sign", key.private, *registry.options) == 0
    for public, verifies in ((tmp_path / "theirs.pub", True), (key.public, True), (other.public, False)):
        assert cosign("verify", "--insecure-ignore-tlog=true", "--key", public, image) == verifies
        assert (run(*pulling, public) == 0) == verifies


def test_a_policy_that_demands_a_signature(registry: Registry, tree: Path, bundle: Bundle, tmp_path: Path) -> None:
    image = f"{registry.name}/policy:1"
    key, other = make_key(tmp_path, "owner"), make_key(tmp_path, "other")
    assert run("image", "push", bundle.path, f"docker://{image}", "--sign", key.private, *registry.options) == 0
    (tmp_path / "registries.d").mkdir()
    (tmp_path / "registries.d/all.yaml").write_text("default-docker: {use-sigstore-attachments: true}\n")
    for public, accepted in ((other.public, False), (key.public, True)):
        policy = tmp_path / "policy.json"
        policy.write_text(f'{{"default": [{{"type": "sigstoreSigned", "keyPath": "{public}"}}]}}')
        words = ["--registries.d", tmp_path / "registries.d", "--policy", policy, "copy", "--remove-signatures"]
        reach = ["--src-cert-dir", registry.certificates, "--authfile", registry.authfile]
        copied = foreign(tree, registry, tmp_path, "skopeo", *words, *reach, f"docker://{image}", "oci:copied:x")
        assert copied == accepted
