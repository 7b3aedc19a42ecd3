"""Signatures on images in registries: sent, looked for and fetched, each under a tag of the image's digest.

    name:sha256-DIGEST      its referrers, by the tag schema of OCI 1.1: the platform owner's signature (COSE)
    name:sha256-DIGEST.sig  cosign's signatures on the manifest

Whose they are, and whether they are right, is for who verifies them (``vambrace.attest``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from vambrace.canonical import canonical
from vambrace.errors import ImageError
from vambrace.image import bundle as form
from vambrace.image.layout import Layout, image_config, read_object
from vambrace.image.oci import IMAGE_CONFIG, INDEX, MANIFEST, descriptor, index_of
from vambrace.image.remote_images import Reference, RemoteImage, read_blob
from vambrace.image.skopeo import MAX_MANIFEST, Skopeo

COSIGN_PAYLOAD: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
COSIGN_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
MAX_PAYLOAD: Final = 16 << 10
MAX_SIGNATURES: Final = 16
MAX_REFERRERS: Final = 16

#: A signature on a manifest: the signed payload, and the signature in base64.
Signature = tuple[bytes, str]


def signers(image: RemoteImage, skopeo: Skopeo) -> tuple[bool, int]:
    """Whether there is a platform owner's signature, and how many of cosign's; whose they are, is not looked at.
    Raises ``RegistryError``, ``ImageError``."""
    owners = _owners_signature(image.reference, _referrers(image.exactly, skopeo), skopeo) is not None
    raw = skopeo.manifest(str(image.reference.beside(tag=f"sha256-{image.digest}.sig")))
    layers = read_object(raw, "the list of signatures").get("layers") if raw else None
    return owners, len(layers) if isinstance(layers, list) else 0


def fetch_cosign_signatures(image: RemoteImage, skopeo: Skopeo, place: Path) -> list[Signature]:
    """cosign's signatures on ``image``, by whomever; ``place`` is a folder for them. Raises ``RegistryError``,
    ``ImageError``."""
    reference = image.reference.beside(tag=f"sha256-{image.digest}.sig")
    raw = skopeo.manifest(str(reference))
    if raw is None:
        return []
    layers = read_object(raw, f"{reference}").get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_SIGNATURES:
        raise ImageError(f"{reference}: no list of at most {MAX_SIGNATURES} signatures", hint="sign the image again")
    found, blobs = [], [read_blob(layer, "signature", MAX_PAYLOAD) for layer in layers]
    layout = Layout(place / "signatures")
    exactly = reference.beside(digest=hashlib.sha256(raw).hexdigest())
    total = sum(blob.size for blob in blobs)
    skopeo.fetch(str(exactly), layout.folder, "signatures", largest=MAX_PAYLOAD, total=total)
    for layer, blob in zip(layers, blobs, strict=True):
        notes = layer.get("annotations")
        signature = notes.get(COSIGN_ANNOTATION) if isinstance(notes, dict) else None
        if layer.get("mediaType") == COSIGN_PAYLOAD and isinstance(signature, str):
            found.append((layout.take(blob.digest, blob.size), signature))
    return found


def send_cosign_signatures(layout: Layout, image: Reference, signatures: Sequence[Signature], skopeo: Skopeo) -> None:
    """cosign's signatures, beside those that are there. Raises ``RegistryError``, ``ImageError``."""
    place = layout.folder.parent / "present"
    place.mkdir()
    present = fetch_cosign_signatures(RemoteImage(image, layout.blob(image.digest).read_bytes(), ()), skopeo, place)
    layers = []
    for payload, signature in [*[each for each in present if each not in signatures], *signatures]:
        layers.append(layout.put(COSIGN_PAYLOAD, payload) | {"annotations": {COSIGN_ANNOTATION: signature}})
    layers = layers[-MAX_SIGNATURES:]
    config = layout.put(IMAGE_CONFIG, image_config(layers))
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    layout.name("cosign", layout.put(MANIFEST, canonical(manifest)))
    skopeo.send(layout.folder, "cosign", str(image.beside(tag=f"sha256-{image.digest}.sig")), total=0)


def send_owners_signature(layout: Layout, image: Reference, owners: dict[str, Any], skopeo: Skopeo) -> None:
    """The owner's signature, in the place of another one, beside all else that refers to the image. Raises
    ``RegistryError``, ``ImageError``."""
    digest = owners["digest"].removeprefix("sha256:")
    skopeo.send(layout.folder, "owners", str(image.beside(digest=digest)), total=0)
    present = _referrers(image, skopeo)
    ours = _owners_signature(image, present, skopeo)
    others = [each for each in present if each is not ours and each.get("digest") != owners["digest"]]
    layout.name("referrers", layout.put(INDEX, canonical(index_of([*others, owners]))))
    skopeo.send(layout.folder, "referrers", str(image.beside(tag=f"sha256-{image.digest}")), total=0, index=True)


def fetch_owners_signature(image: RemoteImage, layout: Layout, skopeo: Skopeo) -> dict[str, Any] | None:
    """The owner's signature in ``layout``, if the registry has one: its manifest's descriptor. Raises
    ``RegistryError``, ``ImageError``."""
    found = _owners_signature(image.reference, _referrers(image.exactly, skopeo), skopeo)
    if found is None:
        return None
    blob = read_blob(found, "signature's manifest", MAX_MANIFEST)
    reference = image.reference.beside(digest=blob.digest)
    skopeo.fetch(str(reference), layout.folder, "owners", largest=form.MAX_SIGNATURE, total=0)
    return descriptor(MANIFEST, blob.digest, blob.size) | {"artifactType": form.SIGNATURE}


def owners_parts(layout: Layout, owners: dict[str, Any] | None) -> list[str]:
    """The digests of a platform owner's signature's blobs and of its manifest. Raises ``ImageError``."""
    if owners is None:
        return []
    blob = read_blob(owners, "signature's manifest", MAX_MANIFEST)
    manifest = read_object(layout.take(blob.digest, blob.size), "the signature's manifest")
    layers = manifest.get("layers")
    if not isinstance(layers, list) or len(layers) != 1:
        raise ImageError("the registry's signature has not the one part that it must have", hint="sign the image again")
    config = read_blob(manifest.get("config"), "signature's configuration", form.MAX_SIGNATURE)
    signature = read_blob(layers[0], "signature", form.MAX_SIGNATURE)
    for each in (config, signature):
        layout.take(each.digest, each.size)
    return [config.digest, signature.digest, blob.digest]


def _referrers(image: Reference, skopeo: Skopeo) -> list[dict[str, Any]]:
    raw = skopeo.manifest(str(image.beside(tag=f"sha256-{image.digest}")))
    if raw is None:
        return []
    manifests = read_object(raw, f"{image}: its list of referrers").get("manifests")
    if not isinstance(manifests, list) or len(manifests) > MAX_REFERRERS:
        raise ImageError(f"{image}: no list of at most {MAX_REFERRERS} referrers", hint="remove that tag")
    if not all(isinstance(each, dict) for each in manifests):
        raise ImageError(f"{image}: its list of referrers is none", hint="remove that tag")
    return manifests


def _owners_signature(
    image: Reference, referrers: Sequence[dict[str, Any]], skopeo: Skopeo
) -> dict[str, Any] | None:
    """The one of ``referrers`` that is a platform owner's signature: its manifest says so, its descriptor need not."""
    for each in referrers:
        if each.get("artifactType", form.SIGNATURE) == form.SIGNATURE and each.get("mediaType") == MANIFEST:
            blob = read_blob(each, "signature's manifest", MAX_MANIFEST)
            raw = skopeo.manifest(str(image.beside(digest=blob.digest)))
            if raw and read_object(raw, "a referrer").get("artifactType") == form.SIGNATURE:
                return each
    return None
