"""Images that are sent to the host: whole, or without what it has; wrong ones leave nothing."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import DISK, Daemon, leftovers, run
from harness_certificates import Certificates
from hypothesis import given
from hypothesis import strategies as st

from vambrace.client.host import _Upload
from vambrace.client.progress import silent
from vambrace.errors import UsageError
from vambrace.host.upload import Kept, spliced
from vambrace.image import Bundle
from vambrace.image.bundle import Part

LIMIT = 30 << 10


def test_images(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        digest = await daemon.upload()
        assert (await daemon.call("HEAD", f"/v1/images/{digest}")).status == 200
        assert [image["sha256"] for image in (await daemon.get("/v1/images")).json["images"]] == [digest]
        assert (await daemon.call("PUT", f"/v1/images/{digest}", data=b"ignored")).status == 200
        assert (await daemon.call("DELETE", f"/v1/images/{digest}")).status == 204
        assert (await daemon.call("DELETE", f"/v1/images/{digest}")).status == 404
        assert (await daemon.call("HEAD", f"/v1/images/{digest}")).status == 404
        assert leftovers(daemon) == []

    run(tmp_path, certificates, test)


def without(path: Path) -> tuple[list[tuple[int, str]], bytes]:
    """The large parts of the bundle at ``path``, as offset and digest, and the bytes that are none of theirs."""
    bundle, data = Bundle.open(path), path.read_bytes()
    parts = sorted((bundle.kernel, bundle.initrd, *bundle.disks), key=lambda part: part.offset)
    starts = [0, *(part.offset + part.size for part in parts)]
    ends = [*(part.offset for part in parts), len(data)]
    rest = b"".join(data[start:end] for start, end in zip(starts, ends, strict=True))
    return [(part.offset, part.digest) for part in parts], rest


def query(digest: str, blobs: list[tuple[int, str]]) -> str:
    return f"/v1/images/{digest}?" + "&".join(f"blob={offset}:{blob}" for offset, blob in blobs)


def test_what_the_host_has_is_not_sent(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        first = await daemon.upload()
        digest, data = daemon.bundle(name="second")
        blobs, rest = without(daemon.directory / "bundle.tar")
        assert len(rest) < len(data) and len(blobs) == 3
        for _, blob in blobs:
            assert (await daemon.call("HEAD", f"/v1/blobs/{blob}")).status == 200
        answer = await daemon.call("PUT", query(digest, blobs[::-1]), data=rest)
        assert answer.status == 201 and answer.json["size"] == len(data)
        # What the one had is the other's own.
        assert (await daemon.call("DELETE", f"/v1/images/{first}")).status == 204
        handle = await daemon.create(digest, "second")
        await (await daemon.vmm()).request("load")
        view = await daemon.state(handle, "awaiting-verdict")
        assert view["measurement"] == daemon.measurement(name="second").hex()
        assert (await daemon.call("DELETE", f"/v1/domains/{handle}")).status == 200
        assert (await daemon.call("DELETE", f"/v1/images/{digest}")).status == 204
        assert (await daemon.call("HEAD", f"/v1/blobs/{blobs[0][1]}")).status == 404
        assert leftovers(daemon) == []

    run(tmp_path, certificates, test)


def test_who_has_not_got_a_blob_does_not_get_it(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        stored = await daemon.upload()
        digest, data = daemon.bundle(name="second")
        blobs, rest = without(daemon.directory / "bundle.tar")
        unknown = (blobs[0][0], "0" * 64)
        for path, status, words in (
            # The digest of what came together is for nobody who cannot compute it.
            (query("0" * 64, blobs), 422, "another digest"),
            (query(digest, [(blobs[0][0] + 1, blobs[0][1]), *blobs[1:]]), 422, "another digest"),
            (query(digest, [*blobs[:2], (len(data), blobs[2][1])]), 400, "beyond the bundle's end"),
            (query(digest, [*blobs, (blobs[0][0] + 1, blobs[0][1])]), 400, "inside another"),
            (query(digest, [unknown, *blobs[1:]]), 404, "no image here has the blob"),
            (query(digest, blobs * 8), 400, "offset and SHA-256"),
            (query(digest, [(-1, blobs[0][1])]), 400, "offset and SHA-256"),
            (query(digest, [(0, "..")]), 400, "offset and SHA-256"),
        ):
            answer = await daemon.call("PUT", path, data=rest)
            assert answer.status == status and words in answer.json["detail"], answer.body
            assert digest not in answer.json["detail"]
            assert leftovers(daemon) == []
        assert [image["sha256"] for image in (await daemon.get("/v1/images")).json["images"]] == [stored]

    run(tmp_path, certificates, test)


def test_what_is_not_sent_counts_too(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        await daemon.upload()
        digest, _ = daemon.bundle(name="second")
        blobs, rest = without(daemon.directory / "bundle.tar")
        whole = (daemon.directory / "bundle.tar").stat().st_size
        assert len(rest) < LIMIT < whole + 2 * len(DISK)
        again = [*blobs, *((whole + number * len(DISK), blobs[-1][1]) for number in range(2))]
        answer = await daemon.call("PUT", query(digest, again), data=rest)
        assert answer.status == 422 and "larger than" in answer.json["detail"]
        assert leftovers(daemon) == []

    run(tmp_path, certificates, test, image_limit=LIMIT)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6, unique=True), st.integers(1, 50))
def test_what_is_taken_out_is_put_back(data: bytes, cuts: list[int], piece: int) -> None:
    places = sorted(cut for cut in cuts if cut <= len(data))
    spans = list(zip(places[::2], places[1::2], strict=False))
    parts = [Part(Path("bundle"), "part", str(start), start, end - start) for start, end in spans]
    body = _Upload(io.BytesIO(data), len(data), parts[::-1], silent)
    sent = b"".join(body)
    assert len(sent) == body.length == len(data) - sum(part.size for part in parts)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(sent), piece):
            yield sent[start : start + piece]

    kept = [Kept(start, end - start, io.BytesIO(data[start:end])) for start, end in spans]

    async def together() -> bytes:
        return b"".join([chunk async for chunk in spliced(pieces(), kept)])

    if kept and not sent:
        # A bundle without a byte of its own is none.
        with pytest.raises(UsageError):
            asyncio.run(together())
    else:
        assert asyncio.run(together()) == data


def test_wrong_images_leave_nothing(tmp_path: Path, certificates: Certificates) -> None:
    async def chunks(total: int) -> AsyncIterator[bytes]:
        for _ in range(total):
            yield bytes(1 << 16)

    async def test(daemon: Daemon) -> None:
        noise = os.urandom(5000)
        right = hashlib.sha256(noise).hexdigest()
        assert (await daemon.call("PUT", f"/v1/images/{right}", data=noise)).status == 422, "not a bundle"
        wrong = await daemon.call("PUT", f"/v1/images/{'0' * 64}", data=noise)
        assert wrong.status == 422
        assert right in wrong.json["detail"]
        for body in (bytes(2 << 20), chunks(32)):
            answer = await daemon.call("PUT", f"/v1/images/{'0' * 64}", data=body)
            assert answer.status == 422
            assert "larger than" in answer.json["detail"]
        for name in ("A" * 64, "0" * 63, "..%2f..%2fetc"):
            assert (await daemon.call("PUT", f"/v1/images/{name}", data=noise)).status in (400, 404)
        assert leftovers(daemon) == []
        assert (await daemon.get("/v1/images")).json["images"] == []

    run(tmp_path, certificates, test, image_limit=1 << 20)


def test_broken_off_upload(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        port = int(daemon.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=certificates.client_context())
        writer.write(f"PUT /v1/images/{'0' * 64} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n".encode())
        writer.write(b"half")
        await writer.drain()
        async with asyncio.timeout(10):
            while not leftovers(daemon):
                await asyncio.sleep(0.02)
            writer.transport.abort()
            while leftovers(daemon):
                await asyncio.sleep(0.02)

    run(tmp_path, certificates, test)


def test_no_space(tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(daemon: Daemon) -> None:
        monkeypatch.setattr("vambrace.host.store.SPARE", 1 << 60)
        answer = await daemon.call("PUT", f"/v1/images/{'0' * 64}", data=b"x" * 100)
        assert answer.status == 507
        assert leftovers(daemon) == []

    run(tmp_path, certificates, test)
