"""Long fuzzing of everything that reads bytes of strangers: the errors of our tree come out, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import socket
import tarfile
from pathlib import Path
from typing import Any

import pytest
from attest_factory import MEASUREMENT, NONCE, NOW, PERSONALIZATION, Platform, published, verify
from client_harness import make_bundle
from config_factory import make_kernel, make_realm, owner
from fuzzing import JSON, mutated, mutated_json, until_budget
from hypothesis import strategies as st

from vambrace.attest import cbor, cose, references
from vambrace.attest.chain import UNREADABLE
from vambrace.attest.owner import Bounds, OwnerIdentity, verify_bounds, verify_percent, verify_verdict
from vambrace.attest.token import describe
from vambrace.attest.verify import verify_launch
from vambrace.canonical import canonical
from vambrace.certificate import certificate_der, certificate_pem, owner_public_key
from vambrace.client.channel import public_key
from vambrace.client.host import DomainInfo, problem
from vambrace.config import DomainConfig
from vambrace.errors import (
    AgentFlood,
    ConfigError,
    HostError,
    ImageError,
    MalformedEvidence,
    MessageRefused,
    VambraceError,
    VerificationError,
)
from vambrace.host import vmm
from vambrace.host.agent import BACKLOG_BYTES, LINE_LIMIT, AgentPort, LineBuffer
from vambrace.image import Bundle
from vambrace.image.manifest import read_manifest
from vambrace.machine.control import Control
from vambrace.machine.kernel import parse_image
from vambrace.machine.plan import plan_boot

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore:Parsed a serial number")]

ENCODED = make_realm(("analysis", "report")).encode()


def test_configuration() -> None:
    """What is accepted is canonical, and says the same when it is written again."""

    @until_budget(mutated([ENCODED]) | mutated_json(json.loads(ENCODED)).map(dumps) | JSON.map(dumps))
    def check(data: bytes) -> None:
        try:
            config = DomainConfig.parse(data)
        except ConfigError as error:
            assert error.message and "\n" not in error.message
            return
        assert config.encode() == data
        assert DomainConfig.parse(data) == config
        with contextlib.suppress(ConfigError):
            plan_boot(config, KERNEL, b"initrd")

    assert check


def dumps(value: Any) -> bytes:
    """As ``canonical``, and where that cannot write it, as Python does."""
    try:
        return canonical(value)
    except (ValueError, TypeError):
        return json.dumps(value).encode()


KERNEL = make_kernel(64 << 10)


def test_kernel_header() -> None:
    @until_budget(mutated([KERNEL[:64]], most=3))
    def check(header: bytes) -> None:
        with contextlib.suppress(ConfigError):
            parse_image(header + KERNEL[64:])

    assert check


MANIFEST = b"""\
name: patients
owner: owner.pem
system: {memory: 384M}
vcpus: 2
debug: false
applications:
  - name: analysis
    files: analysis
    command: [python3, "analyse.py", 'x']
    environment: {A: b}
    memory: 128M
    percent: 80
    results: [result.txt]
  - {name: report, files: [owner.pem], command: "sh -c 'echo 1'", restarts: 3}
"""
# What YAML has beside the plain things.
YAML = [
    *(
        b'"\\UFFFFFFFF"',
        b'"\\x"',
        b'"\\ud800"',
        b"!!binary x",
        b"!!python/name:os",
        b"!!int x",
        b"!!float 1",
        b"<<: *a",
    ),
    *(
        b"%YAML 1.1\n---\n",
        b"%YAML 9.9\n---\n",
        b"---\n",
        b"...\n",
        b"&a [*a]",
        b"|\n ",
        b">-\n ",
        b"? [a]: b",
        b"\xff\xfe",
    ),
    *(
        b"0o17",
        b"0x10",
        b"1_000",
        b"1:30",
        b"~",
        b".inf",
        b"2001-01-01",
        b"{" * 3000,
        b"[" * 3000,
        b"\t",
        b'"' + b"a" * 999,
    ),
    *(b"n" * 300, b"'" + b"n/" * 3000 + b"'", b'"a\\0b"', b"../..", b"/", b"''"),
]


def test_manifest(tmp_path: Path) -> None:
    (tmp_path / "owner.pem").write_text(owner()[0])
    (tmp_path / "analysis").mkdir()
    path = tmp_path / "manifest.yaml"

    @st.composite
    def manifests(draw: st.DrawFn) -> bytes:
        data = draw(mutated([MANIFEST], most=3) | st.just(MANIFEST))
        if draw(st.booleans()):
            words = data.split(b" ")
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(YAML))
            data = b" ".join(words)
        return data

    @until_budget(manifests())
    def check(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            read_manifest(path)

    assert check


def test_bundle(tmp_path: Path) -> None:
    """The tar's bytes; and a sound tar whose JSON is wrong, with digests that are right."""
    identity = OwnerIdentity.create(tmp_path / "owner")
    good = make_bundle(tmp_path, identity).path
    with tarfile.open(good) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    # The large parts, small: the fuzzer looks at the structure.
    index = json.loads(members["index.json"])
    manifest = json.loads(members["blobs/sha256/" + index["manifests"][0]["digest"][7:]])
    config = members["blobs/sha256/" + manifest["config"]["digest"][7:]]
    kernel = "blobs/sha256/" + manifest["layers"][0]["digest"][7:]
    members[kernel] = members[kernel][:4096]
    path = tmp_path / "fuzzed"

    @st.composite
    def bundles(draw: st.DrawFn) -> bytes:
        parts = dict(members)
        for part in ("config", "manifest", "index"):
            parts.pop({"index": "index.json"}.get(part, ""), None)
        new_config = draw(mutated_json(json.loads(config)).map(dumps)) if draw(st.booleans()) else config
        new_manifest = draw(mutated_json(manifest)) if draw(st.booleans()) else json.loads(json.dumps(manifest))
        with contextlib.suppress(KeyError, TypeError, IndexError):
            new_manifest["config"] |= named(parts, new_config)
            new_manifest["layers"][0] |= named(parts, parts.pop(kernel))
        new_index = draw(mutated_json(index)) if draw(st.booleans()) else json.loads(json.dumps(index))
        with contextlib.suppress(KeyError, TypeError, IndexError):
            new_index["manifests"][0] |= named(parts, dumps(new_manifest))
        parts["index.json"] = dumps(new_index)
        for old in (index["manifests"][0]["digest"], manifest["config"]["digest"]):
            if draw(st.integers(0, 9)):
                parts.pop("blobs/sha256/" + old[7:], None)
        data = packed(parts)
        return draw(mutated([data], most=2)) if draw(st.integers(0, 3)) == 0 else data

    opened = 0

    @until_budget(bundles())
    def check(data: bytes) -> None:
        nonlocal opened
        path.write_bytes(data)
        try:
            bundle = Bundle.open(path)
            opened += 1
            bundle.measurement()
        except (ImageError, ConfigError) as error:
            assert "\n" not in error.message

    assert check and opened


def named(parts: dict[str, bytes], content: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    parts[f"blobs/sha256/{digest}"] = content
    return {"digest": f"sha256:{digest}", "size": len(content)}


def packed(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


# Evidence

PLATFORM = Platform()
TOKEN = PLATFORM.token()
CORIM = published(PLATFORM)


def test_cbor_and_cose() -> None:
    """What is decoded is deterministic: it is written again as it was read."""

    @until_budget(mutated([TOKEN, CORIM, PLATFORM.halves()[44241], PLATFORM.rak_cose]) | st.binary(max_size=80))
    def check(data: bytes) -> None:
        with contextlib.suppress(VerificationError):
            assert cbor.encode(cbor.decode(data, limit=1 << 20)) == data
        for read in (lambda: cose.decode_sign1(data, "it"), lambda: cose.decode_key(data), lambda: describe(data)):
            with contextlib.suppress(VerificationError):
                read()

    assert check


def test_tokens() -> None:
    """Changed anywhere, and claims that a certified platform signs: never another error, never a wrong yes."""

    @st.composite
    def claims(draw: st.DrawFn) -> bytes:
        half = draw(st.sampled_from(["platform_claims", "realm_claims"]))
        good = cbor.encode(getattr(PLATFORM, half)())
        changed = draw(mutated([good], most=2))
        halves = PLATFORM.halves()
        key, name = (PLATFORM.pak, 44234) if half == "platform_claims" else (PLATFORM.rak, 44241)
        header = {33: PLATFORM.endorsement[0]} if half == "platform_claims" else {}
        halves[name] = cose.sign1(key, changed, unprotected=header)
        return cbor.encode(cbor.Tag(907, halves))

    @until_budget(mutated([TOKEN]) | claims())
    def check(token: bytes) -> None:
        with contextlib.suppress(VerificationError):
            realm = verify(token, PLATFORM)
            assert realm.measurement == MEASUREMENT and realm.personalization == PERSONALIZATION
            assert realm.lifecycle == 0x3000 and not realm.insecure and not realm.debug
        with contextlib.suppress(VerificationError):
            verify_launch(
                token,
                nonce=NONCE,
                roots=PLATFORM.roots,
                references=PLATFORM.references,
                measurement=MEASUREMENT,
                personalization=PERSONALIZATION,
                now=NOW,
            )

    assert check


def test_reference_values() -> None:
    @until_budget(mutated([CORIM]))
    def check(data: bytes) -> None:
        if data != CORIM:
            with pytest.raises(VerificationError):
                references.load(data, PLATFORM.roots, now=NOW)

    assert check


def test_owner_s_messages(tmp_path: Path) -> None:
    identity = OwnerIdentity.create(tmp_path / "owner")
    instance, digest = bytes(range(16)), hashlib.sha256(b"token").digest()
    pem = identity.certificate_pem
    verdict = identity.sign_verdict(instance, digest, yes=True)
    percent = identity.sign_percent(instance, 1, 50, 7)
    bounds = identity.sign_bounds(instance, 1, Bounds(30, 90, 50), 7)

    @st.composite
    def signed(draw: st.DrawFn) -> bytes:
        """By the owner's own key, over anything."""
        payloads = [cose.decode_sign1(message, "it").payload for message in (verdict, percent, bounds)]
        return cose.sign1(identity.key, draw(mutated(payloads, most=2)))

    @until_budget(mutated([verdict, percent, bounds]) | signed())
    def check(message: bytes) -> None:
        with contextlib.suppress(MessageRefused, VerificationError):
            verify_verdict(message, owner=pem, instance=instance, token_digest=digest)
        with contextlib.suppress(MessageRefused, VerificationError):
            order = verify_percent(message, owner=pem, instance=instance, last_counter=6)
            assert order.counter > 6 and 0 <= order.percent <= 100 and order.zone >= 0
        with contextlib.suppress(MessageRefused, VerificationError):
            wide = verify_bounds(message, owner=pem, instance=instance, last_counter=6)
            assert wide.counter > 6 and wide.zone >= 0
            assert wide.bounds is None or 1 <= wide.bounds.lowest <= wide.bounds.highest <= 100

    assert check


def test_der_walk() -> None:
    """Where our walk finds a key, it is the one that OpenSSL finds, if that reads the certificate at all."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    good = certificate_der(owner()[0])
    assert owner_public_key(certificate_pem(good)) == public_key(good)

    @until_budget(mutated([good], most=3))
    def check(der: bytes) -> None:
        with contextlib.suppress(MalformedEvidence):
            public_key(der)
        try:
            spki = owner_public_key(certificate_pem(der))
        except ConfigError:
            return
        with contextlib.suppress(*UNREADABLE):
            theirs = x509.load_der_x509_certificate(der).public_key()
            assert theirs.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki

    assert check


def test_pem() -> None:
    pem = owner()[0].encode()

    @until_budget(mutated([pem]))
    def check(data: bytes) -> None:
        with contextlib.suppress(ConfigError):
            owner_public_key(data.decode("utf-8", errors="surrogateescape"))

    assert check


# The agent and the VMM, as the daemon hears them; the host, as the client does


class Guarded:
    """A monitor that checks what reaches it."""

    def identity(self) -> bytes:
        return bytes(16)

    async def attest(self, challenge: bytes) -> bytes:
        assert len(challenge) == 64
        return b"token"

    async def encrypt(self, message: bytes) -> dict[str, Any]:
        assert isinstance(message, bytes)
        raise MessageRefused("no")

    def change(self, zone: int) -> dict[str, Any] | None:
        assert type(zone) is int and zone >= 0
        return None

    async def auto(self, message: bytes) -> None:
        assert isinstance(message, bytes)
        raise MessageRefused("no")

    def autos(self) -> list[dict[str, Any] | None]:
        return [None]

    async def stats(self) -> list[Any]:
        return []

    async def sample(self, on: bool, seconds: int) -> None:
        assert type(on) is bool and 0 <= seconds <= 3600

    async def reuse(self) -> dict[str, Any]:
        return {"zones": [], "fault_ns": 1}

    def report(self, state: str, detail: str) -> None:
        assert state in ("ready", "running", "succeeded", "failed") and len(detail) <= 200


REQUESTS = [
    {"id": 1, "op": "identity"},
    {"id": 2, "op": "attest", "challenge": "00" * 64},
    {"id": 3, "op": "encrypt", "message": base64.b64encode(b"message").decode()},
    {"id": 8, "op": "change", "zone": 1},
    {"id": 9, "op": "auto", "message": base64.b64encode(b"message").decode()},
    {"id": 4, "op": "stats"},
    {"id": 6, "op": "sample", "on": True, "seconds": 5},
    {"id": 7, "op": "reuse"},
    {"id": 5, "op": "report", "state": "running", "detail": "x"},
]


def test_agent_s_port() -> None:
    """Each line has exactly one reply, in order, whatever is in it and however it arrives."""
    lines = [json.dumps(request).encode() for request in REQUESTS]
    line = mutated(lines) | st.sampled_from(REQUESTS).flatmap(mutated_json).map(json.dumps).map(str.encode)
    line = line.map(lambda data: data.replace(b"\n", b" "))

    @until_budget(st.tuples(st.lists(line, max_size=8), st.integers(1, 3000)))
    def check(example: tuple[list[bytes], int]) -> None:
        sent, size = example
        replies: list[dict[str, Any]] = []

        async def send(data: bytes) -> None:
            assert data.endswith(b"\n") and data.count(b"\n") == 1
            replies.append(json.loads(data))

        async def conversation() -> None:
            port = AgentPort(Guarded(), send, rate=1e9, burst=1e9)
            stream = b"".join(data + b"\n" for data in sent)
            for start in range(0, len(stream), size):
                port.receive(stream[start : start + size])
            serving = asyncio.create_task(port.serve())
            for _ in range(20 * len(sent) + 20):
                if len(replies) == len(sent):
                    break
                await asyncio.sleep(0)
            assert not serving.done()
            serving.cancel()

        asyncio.run(conversation())
        assert len(replies) == len(sent)
        for data, reply in zip(sent, replies, strict=True):
            if reply["ok"] and json.loads(data).get("op") != "stats":
                assert json.loads(data)["id"] == reply["id"]

    assert check


def test_lines() -> None:
    """As a simple reader of the whole stream sees them, in bounded memory."""
    pieces = st.lists(st.binary(max_size=60) | st.sampled_from([b"\n", b"\n\n", b"x" * LINE_LIMIT, b"y" * 70_000]))

    @until_budget(pieces)
    def check(parts: list[bytes]) -> None:
        buffer, seen = LineBuffer(), []
        for number, part in enumerate(parts, start=1):
            try:
                seen += buffer.feed(part)
            except AgentFlood:
                # Only for a line that goes on and on.
                assert len(b"".join(parts[:number]).rpartition(b"\n")[2]) > BACKLOG_BYTES
                return
            assert len(buffer._partial) <= LINE_LIMIT
        *whole, rest = b"".join(parts).split(b"\n")
        expected = [line if len(line) <= LINE_LIMIT else None for line in whole]
        assert seen == expected + ([None] if len(rest) > LINE_LIMIT else [])

    assert check


def test_flood() -> None:
    """Memory for what waits is bounded: the end comes, and before it nothing is lost."""

    @until_budget(st.lists(st.binary(max_size=50).map(lambda line: line + b"\n"), min_size=1, max_size=300))
    def check(lines: list[bytes]) -> None:
        async def feed() -> None:
            port = AgentPort(Guarded(), lambda data: asyncio.sleep(0))
            with contextlib.suppress(AgentFlood):
                for line in lines:
                    port.receive(line)
            assert len(port._backlog) <= 64 + 52

        asyncio.run(feed())

    assert check


def test_what_a_vmm_says() -> None:
    """Replies and events of a VMM that its guest has taken over: dealt with, or the end of that VMM."""
    events = [
        {"id": 1, "ok": True, "measurement": "00"},
        {"id": 1, "ok": False, "error": "x", "hint": "y"},
        {"event": "agent", "data": base64.b64encode(b"x").decode()},
        {"event": "console", "data": ""},
        {"event": "ended", "reason": "crash", "detail": "x"},
    ]
    packets = mutated([json.dumps(event).encode() for event in events])
    packets = packets | st.sampled_from(events).flatmap(mutated_json).map(json.dumps).map(str.encode)

    @until_budget(packets)
    def check(packet: bytes) -> None:
        heard: list[Any] = []
        client = object.__new__(vmm.Vmm)
        client._on_event = heard.append
        client._replies = {}
        with contextlib.suppress(ValueError):
            client._dispatch(packet)
        for event in heard:
            match event:
                case vmm.Ended(reason, detail):
                    assert reason.isprintable() and (detail + "x").isprintable() and len(reason + detail) <= 400
                case vmm.AgentBytes(data) | vmm.ConsoleBytes(data):
                    assert isinstance(data, bytes)

    assert check


def test_control_protocol(tmp_path: Path) -> None:
    """The VMM's side: each packet has one reply, and the process lives."""
    files = []
    for name, data in (("config", make_realm(disks=()).encode()), ("kernel", KERNEL), ("initrd", b"initrd")):
        (tmp_path / name).write_bytes(data)
        files.append(os.open(tmp_path / name, os.O_RDONLY))
    files += [os.open("/dev/null", os.O_RDWR) for _ in range(3)]
    names = ["config", "kernel", "initrd", "kvm", "userfaultfd", "vhost-vsock"]
    requests = [
        {"id": 1, "op": "load", "instance": "11" * 16, "share": "a5" * 32, "cid": 3, "cpus": [0]},
        {"id": 1, "op": "load", "descriptors": names, "instance": "11" * 16, "share": "a5" * 32, "cid": 3},
        {"id": 2, "op": "start"},
        {"id": 3, "op": "encrypt", "zone": 0, "percent": 5},
        {"id": 9, "op": "change"},
        {"id": 4, "op": "stats"},
        {"id": 7, "op": "sample", "on": True, "zones": [0]},
        {"id": 8, "op": "reuse"},
        {"id": 5, "op": "agent", "data": base64.b64encode(b"x").decode()},
        {"id": 6, "op": "destroy"},
    ]
    packets = mutated([json.dumps(request).encode() for request in requests])
    packets = packets | st.sampled_from(requests).flatmap(mutated_json).map(json.dumps).map(str.encode)

    @until_budget(st.tuples(packets.filter(bool), st.sampled_from([0, len(files) - 1, len(files)])))
    def check(value: tuple[bytes, int]) -> None:
        packet, sent = value
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            control = Control(theirs)
            try:
                socket.send_fds(ours, [packet], files[:sent])
                control._receive()
                reply = json.loads(ours.recv(1 << 17))
                assert isinstance(reply["ok"], bool) and (reply["ok"] or reply["error"])
            finally:
                control._machine.close()

    assert check


def test_what_a_host_says() -> None:
    """To the client: a Realm or an error of our tree, printable."""
    info = {"uuid": "0" * 8 + "-0000" * 3 + "-" + "0" * 12, "name": "n", "state": "running", "executed": True}
    info |= {"created": 1.0, "memory": 5, "instance": "00", "reason": "r", "agent": None}
    error = {"type": "tag:vambrace.dev,2026:problem/image", "detail": "d", "hint": "h", "status": 422}

    @until_budget(mutated_json(info) | mutated_json(error) | JSON)
    def check(value: Any) -> None:
        with contextlib.suppress(HostError):
            decoded = DomainInfo.decode(value)
            assert (decoded.name + decoded.state + decoded.reason + "x").isprintable()
        raised = problem(422, json.dumps(value).encode())
        assert isinstance(raised, VambraceError) and raised.message.isprintable()
        assert raised.hint is None or raised.hint.isprintable()

    assert check
