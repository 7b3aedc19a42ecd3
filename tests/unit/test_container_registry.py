"""Container images of a registry."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from container_images import image, layer, member
from docker_registry import running_registry

from vambrace.errors import BuildError, RegistryError
from vambrace.image.containers import read_image


def test_a_container_image_comes_from_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the certificates and credentials that skopeo finds itself; the same bits as from a folder."""
    source = image(tmp_path / "image", layer(member("bin/tool", b"tool", mode=0o755)))
    (tmp_path / "registry").mkdir()
    with running_registry(tmp_path / "registry") as registry:
        place = f"docker://{registry.name}/team/tool:1"
        monkeypatch.setenv("SSL_CERT_FILE", str(registry.certificates / "ca.crt"))
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(registry.authfile))
        subprocess.run(["skopeo", "copy", "-q", source, place], check=True)
        pulled = read_image(place, tmp_path / "pulled")
        assert pulled.verity == read_image(source, tmp_path / "read").verity
        with pytest.raises(RegistryError, match="no such image"):
            read_image(place.replace("tool:1", "tool:2"), tmp_path / "missing")
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none"))
        with pytest.raises(RegistryError, match="wants other credentials"):
            read_image(place, tmp_path / "refused")
    with pytest.raises(RegistryError, match="cannot be reached"):
        read_image(place, tmp_path / "gone")
    with pytest.raises(BuildError, match="oci:"):
        read_image(f"oci:{tmp_path}/image:other", tmp_path / "unknown")
