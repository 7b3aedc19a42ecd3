"""Images that are sent to the host: whole, or without what it has; wrong ones leave nothing."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, Daemon, leftovers, run
from harness_certificates import Certificates
from hypothesis import given
from hypothesis import strategies as st

from vambrace.client.host import _Upload
from vambrace.client.progress import silent
from vambrace.errors import ImageError, NotFound
from vambrace.host.store import Store, StoredImage
from vambrace.host.upload import Kept, join, joined
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
    parts = sorted(bundle.parts, key=lambda part: part.offset)
    starts = [0, *(part.offset + part.size for part in parts)]
    ends = [*(part.offset for part in parts), len(data)]
    rest = b"".join(data[start:end] for start, end in zip(starts, ends, strict=True))
    return [(part.offset, part.digest) for part in parts], rest


def another(daemon: Daemon, name: str) -> tuple[str, bytes, list[tuple[int, str]], bytes]:
    """A bundle of that name: its digest and contents, and these as ``without`` has them."""
    digest, data = daemon.bundle(name=name)
    return digest, data, *without(daemon.directory / "bundle.tar")


def query(digest: str, blobs: list[tuple[int, str]]) -> str:
    return f"/v1/images/{digest}?" + "&".join(f"blob={offset}:{blob}" for offset, blob in blobs)


def test_what_the_host_has_is_not_sent(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        first = await daemon.upload()
        digest, data, blobs, rest = another(daemon, "second")
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
        digest, data, blobs, rest = another(daemon, "second")
        unknown = (blobs[0][0], "0" * 64)
        for path, status, words in (
            # The digest of what came together is for nobody who cannot compute it.
            (query("0" * 64, blobs), 422, "another digest"),
            (query(digest, [(blobs[0][0] + 1, blobs[0][1]), *blobs[1:]]), 422, "another digest"),
            (query(digest, [*blobs[:2], (len(data), blobs[2][1])]), 400, "beyond the bundle's end"),
            (query(digest, [blobs[0], (blobs[0][0] + 1, blobs[1][1]), blobs[2]]), 400, "inside another"),
            # From a blob's digest alone follows that of a file that begins with it.
            (query(digest, [(0, blobs[0][1]), *blobs[1:]]), 400, "offset and SHA-256"),
            (query(digest, [*blobs, (len(data), blobs[2][1])]), 400, "named once"),
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
    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        yield body

    async def test(daemon: Daemon) -> None:
        await daemon.upload()
        digest, data, blobs, rest = another(daemon, "second")
        longer = rest + bytes(LIMIT - len(data) + 1)
        assert len(longer) < LIMIT
        for body in (longer, pieces(longer)):
            answer = await daemon.call("PUT", query(digest, blobs), data=body)
            assert answer.status == 422 and "larger than" in answer.json["detail"]
        assert leftovers(daemon) == []

    run(tmp_path, certificates, test, image_limit=LIMIT)


def test_nothing_is_written_for_who_does_not_know_the_whole(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(1 << 20))
    (tmp_path / "sent").write_bytes(b"config")
    kept = [Kept(6, 1 << 20, tmp_path / "blob", "0" * 64)]
    asked: list[int] = []
    whole = io.BytesIO()
    with pytest.raises(ImageError, match="another digest"):
        join(tmp_path / "sent", kept, "0" * 64, whole, asked.append)
    assert not asked and not whole.getvalue()
    digest = hashlib.sha256(b"config" + bytes(1 << 20)).hexdigest()
    join(tmp_path / "sent", kept, digest, whole, asked.append)
    assert sum(asked) == len(whole.getvalue()) == 6 + (1 << 20)


def test_who_waits_too_long_may_send_all(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small requests for much work are done one at a time, and keep nobody's whole image out."""
    begun, go_on = threading.Event(), threading.Event()

    def waiting(*arguments: Any) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)
        join(*arguments)

    async def test(daemon: Daemon) -> None:
        await daemon.upload()
        second, _, blobs, rest = another(daemon, "second")
        third, data, its_blobs, its_rest = another(daemon, "third")
        first = asyncio.create_task(daemon.call("PUT", query(second, blobs), data=rest))
        try:
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            answer = await daemon.call("PUT", query(third, its_blobs), data=its_rest)
            assert answer.status == 503 and answer.json["hint"] == "send the whole bundle"
            assert (await daemon.call("PUT", f"/v1/images/{third}", data=data)).status == 201
        finally:
            go_on.set()
        assert (await first).status == 201
        assert leftovers(daemon) == []

    monkeypatch.setattr("vambrace.host.host.join", waiting)
    monkeypatch.setattr("vambrace.host.host.TURN_SECONDS", 0.1)
    run(tmp_path, certificates, test)


def test_an_image_that_is_deleted_while_another_is_sent(tmp_path: Path, certificates: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        first = await daemon.upload()
        digest, data, blobs, rest = another(daemon, "second")

        async def slowly() -> AsyncIterator[bytes]:
            yield rest[:100]
            async with asyncio.timeout(PATIENCE):
                while not leftovers(daemon):
                    await asyncio.sleep(0.02)
            assert (await daemon.call("DELETE", f"/v1/images/{first}")).status == 204
            yield rest[100:]

        answer = await daemon.call("PUT", query(digest, blobs), data=slowly())
        assert answer.status == 404 and answer.json["hint"] == "send the whole bundle"
        assert leftovers(daemon) == []
        assert (await daemon.call("PUT", f"/v1/images/{digest}", data=data)).status == 201

    run(tmp_path, certificates, test)


def test_what_the_state_disk_may_hold_instead(tmp_path: Path, certificates: Certificates) -> None:
    """A file of somebody's, an image of an earlier version, a blob that has gone or is damaged: whole bundles are
    stored all the same."""

    async def test(daemon: Daemon) -> None:
        first = await daemon.upload()
        images = daemon.settings.state / "images"
        (images / "0-notes").write_text("do not delete")
        for number, (spoil, status) in enumerate(((forget_blobs, 404), (lose_kernel, 404), (damage_kernel, 422))):
            digest, data, blobs, rest = another(daemon, f"other-{number}")
            kernel = hashlib.sha256(daemon.kernel()).hexdigest()
            spoil(images / first)
            found = (await daemon.call("HEAD", f"/v1/blobs/{kernel}")).status
            assert found == (200 if status == 422 else 404)
            assert (await daemon.call("PUT", query(digest, blobs), data=rest)).status == status
            assert (await daemon.call("PUT", f"/v1/images/{digest}", data=data)).status == 201
            listed = [image["sha256"] for image in (await daemon.get("/v1/images")).json["images"]]
            assert sorted(listed) == sorted((first, digest))
            assert (await daemon.call("DELETE", f"/v1/images/{first}")).status == 204
            first = digest
        assert leftovers(daemon) == []

    run(tmp_path, certificates, test)


def forget_blobs(image: Path) -> None:
    description = json.loads((image / "image.json").read_text())
    del description["blobs"]
    (image / "image.json").write_text(json.dumps(description))


def lose_kernel(image: Path) -> None:
    (image / "kernel").unlink()


def damage_kernel(image: Path) -> None:
    content = (image / "kernel").read_bytes()
    (image / "kernel").write_bytes(bytes([content[0] ^ 1]) + content[1:])


def test_who_asks_often_has_little_read(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = Store.image

    def counted(store: Store, digest: str) -> StoredImage:
        read.append(digest)
        return real(store, digest)

    async def test(daemon: Daemon) -> None:
        stored = await daemon.upload()
        monkeypatch.setattr(Store, "image", counted)
        digest, _, blobs, _ = another(daemon, "second")
        for _, blob in (*blobs, (0, "0" * 64)):
            found = (await daemon.call("HEAD", f"/v1/blobs/{blob}")).status
            assert found == (404 if blob == "0" * 64 else 200)
        assert read == [stored]

    run(tmp_path, certificates, test)


def test_an_image_that_goes_while_they_are_listed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.images / ("0" * 64)).mkdir()
    assert store.list_images() == []
    with pytest.raises(NotFound):
        store.image("0" * 64)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6, unique=True))
def test_what_is_taken_out_is_put_back(tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]) -> None:
    places = sorted(cut for cut in cuts if cut <= len(data))
    spans = list(zip(places[::2], places[1::2], strict=False))
    parts = [Part(Path("bundle"), "part", str(start), start, end - start) for start, end in spans]
    body = _Upload(io.BytesIO(data), len(data), parts[::-1], silent)
    sent = b"".join(body)
    assert len(sent) == body.length == len(data) - sum(part.size for part in parts)
    folder = tmp_path_factory.getbasetemp()
    (folder / "sent").write_bytes(sent)
    kept = [Kept(start, end - start, folder / f"blob-{start}", "0" * 64) for start, end in spans]
    for blob in kept:
        blob.path.write_bytes(data[blob.offset : blob.offset + blob.size])
    assert b"".join(joined(folder / "sent", kept)) == data


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
        async with asyncio.timeout(PATIENCE):
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
