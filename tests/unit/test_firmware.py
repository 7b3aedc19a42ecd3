"""The firmware's own C on this machine: what the trusted application reads and writes, and the stub's SHA-256."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vambrace.attest.cose import decode_key
from vambrace.attest.signatures import check_signatures
from vambrace.attest.suites import suite_of
from vambrace.attest.token import decode_evidence
from vambrace.suite import SUITES, Suite
from vambrace.trustzone import RealmClaims

ROOT = Path(__file__).parents[2]
TESTS, TA, STUB = (ROOT / "firmware" / name for name in ("tests", "ta", "stub"))
FAKES = ROOT / "tests/fakes/tee"
FLAGS = ("-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

OK, SECURITY, NO_MEMORY, SHORT = "00000000", "ffff000f", "ffff000c", "ffff0010"
NOT_FOUND = 0xFFFF0008
LOG_MAX = 4096
EVENTS_MAX = 16

# TCG PC Client Platform Firmware Profile, sections 9.2 and 10.4; TCG Algorithm Registry.
EV_POST_CODE, EV_NO_ACTION, EV_SEPARATOR = 1, 3, 4
SHA1, SHA256, SHA384 = 4, 0xB, 0xC

DIGESTS = [hashlib.sha256(bytes([number])).digest() for number in range(EVENTS_MAX + 1)]


def compiled(
    directory: Path, name: str, *sources: Path, include: Sequence[Path] = (), options: Sequence[str] = ()
) -> Path:
    program = directory / name
    words = [*(f"-I{path}" for path in include), "-o", program, TESTS / f"{name}.c", *sources, *options]
    subprocess.run(["cc", *FLAGS, *SANITIZERS, *words], check=True)
    return program


def output(words: Sequence[str | Path], data: bytes) -> list[str]:
    """The lines that a program answers; a sanitizer's complaint fails the test."""
    result = subprocess.run(words, input=data, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode().splitlines()


# --- the boot event log ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def eventlog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("eventlog")
    return compiled(directory, "eventlog", TA / "eventlog.c", TA / "pta.c", FAKES / "tee.c", include=[FAKES, TA])


def record(log: bytes, *, opening: int = 0, answer: int = 0, claimed: int | None = None, memory: bool = True) -> bytes:
    stated = len(log) if claimed is None else claimed
    return struct.pack("<5I", opening, answer, stated, not memory, len(log)) + log


def read(eventlog: Path, logs: Iterable[bytes]) -> list[str]:
    return output([eventlog], b"".join(record(log) for log in logs))


def header(
    *,
    kind: int = EV_NO_ACTION,
    signature: bytes = b"Spec ID Event03\0",
    count: int | None = None,
    algorithms: Sequence[tuple[int, int]] = ((SHA256, 32),),
    vendor: bytes = b"",
    vendor_size: int | None = None,
    size: int | None = None,
) -> bytes:
    """TCG_PCClientPCREvent with TCG_EfiSpecIDEvent: class 0 (client), version 2.0, errata 2, UINTN of 64 bits."""
    event = signature + struct.pack("<IBBBB", 0, 0, 2, 2, 2)
    event += struct.pack("<I", len(algorithms) if count is None else count)
    event += b"".join(struct.pack("<HH", *algorithm) for algorithm in algorithms)
    event += bytes([len(vendor) if vendor_size is None else vendor_size]) + vendor
    return struct.pack("<II20sI", 0, kind, b"", len(event) if size is None else size) + event


def event(
    name: bytes,
    digest: bytes = DIGESTS[0],
    *,
    pcr: int = 0,
    kind: int = EV_POST_CODE,
    count: int = 1,
    algorithm: int = SHA256,
    size: int | None = None,
) -> bytes:
    """TCG_PCR_EVENT2."""
    head = struct.pack("<IIIH", pcr, kind, count, algorithm)
    return head + digest + struct.pack("<I", len(name) if size is None else size) + name


NAMES = (b"SECURE_RT_EL3\0", b"SECURE_RT_EL1_OPTEE\0", b"BL_33\0")
EVENTS = [event(name, digest) for name, digest in zip(NAMES, DIGESTS, strict=False)]
GOOD = header() + b"".join(EVENTS)


def understood(*pairs: tuple[bytes, bytes]) -> str:
    return " ".join([OK, *(f"{name.decode()}={digest.hex()}" for name, digest in pairs)])


def test_a_good_log(eventlog: Path) -> None:
    expected = understood(*((name[:-1], digest) for name, digest in zip(NAMES, DIGESTS, strict=False)))
    nothing = event(b"StartupLocality\0\3", bytes(32), kind=EV_NO_ACTION)
    vendor = header(vendor=b"of the vendor") + b"".join(EVENTS)
    assert read(eventlog, [GOOD, header() + nothing + GOOD[len(header()) :] + nothing, vendor]) == [expected] * 3


def test_a_log_cut_at_every_length(eventlog: Path) -> None:
    """Only between two events is it whole: that nothing is missing, the verifier sees by the reference values."""
    ends = {len(header()) + sum(map(len, EVENTS[:count])): count for count in (1, 2, 3)}
    for length, answer in enumerate(read(eventlog, [GOOD[:length] for length in range(len(GOOD) + 1)])):
        pairs = [(name[:-1], digest) for name, digest in zip(NAMES, DIGESTS, strict=False)][: ends.get(length, 0)]
        assert answer == (understood(*pairs) if pairs else SECURITY), length


HUGE = 0xFFFFFFFF
REFUSED = {
    "nothing measured": header(),
    "no header": b"".join(EVENTS),
    "another first event": header(kind=EV_POST_CODE) + EVENTS[0],
    "an older log": header(signature=b"Spec ID Event02\0") + EVENTS[0],
    "a signature that goes on": header(signature=b"Spec ID Event03!") + EVENTS[0],
    "no algorithm": header(algorithms=()) + EVENTS[0],
    "two algorithms": header(algorithms=((SHA256, 32), (SHA384, 48))) + EVENTS[0],
    "one algorithm said to be two": header(count=2) + EVENTS[0],
    "one algorithm said to be none": header(count=0) + EVENTS[0],
    "more algorithms than there can be": header(count=HUGE) + EVENTS[0],
    "SHA-1": header(algorithms=((SHA1, 20),)) + EVENTS[0],
    "SHA-1 said to be long": header(algorithms=((SHA1, 32),)) + EVENTS[0],
    "a short SHA-256": header(algorithms=((SHA256, 20),)) + EVENTS[0],
    "a long SHA-256": header(algorithms=((SHA256, 64),)) + EVENTS[0],
    "more of the vendor than there is": header(vendor_size=1) + EVENTS[0],
    "less of the vendor than there is": header(vendor=b"xy", vendor_size=1) + EVENTS[0],
    "a header of no size": header(size=0) + EVENTS[0],
    "a header that is too short": header(size=len(header()) - 33) + EVENTS[0],
    "a header that takes an event in": header(size=len(header()) - 32 + len(EVENTS[0])) + EVENTS[0],
    "a header beyond the log": header(size=HUGE) + EVENTS[0],
    "no digest": GOOD + event(b"X", count=0),
    "two digests": GOOD + event(b"X", count=2),
    "more digests than there can be": GOOD + event(b"X", count=HUGE),
    "another algorithm's digest": GOOD + event(b"X", algorithm=SHA384),
    "no algorithm's digest": GOOD + event(b"X", algorithm=0),
    "an event that says nothing with another digest": GOOD + event(b"X", kind=EV_NO_ACTION, algorithm=SHA1),
    "an event of a byte too much": GOOD + event(b"X", size=2),
    "an event beyond the log": GOOD + event(b"X", size=HUGE),
    "an event of half the address space": GOOD + event(b"X", size=0x7FFFFFFF),
    "an event that says nothing beyond the log": GOOD + event(b"X", kind=EV_NO_ACTION, size=HUGE),
    "another register": GOOD + event(b"X", pcr=1),
    "another register, far away": GOOD + event(b"X", pcr=HUGE),
    "another kind": GOOD + event(b"X", kind=EV_SEPARATOR),
    "an event without a name": GOOD + event(b""),
    "a name of nothing": GOOD + event(b"\0"),
    "a name with a zero in it": GOOD + event(b"BL\x0033\0"),
    "a name with two zeros": GOOD + event(b"BL_33\0\0"),
    "a name with a space": GOOD + event(b"BL 33\0"),
    "a name with a line": GOOD + event(b"BL_33\n\0"),
    "a name that is not ASCII": GOOD + event("BL_33é\0".encode()),
    "a name with DEL": GOOD + event(b"BL_33\x7f\0"),
    "a long name": GOOD + event(b"N" * 64 + b"\0"),
    "a long name without a zero": GOOD + event(b"N" * 64),
    "a very long name": GOOD + event(b"N" * 2000 + b"\0"),
    "one event too many": header() + b"".join(event(b"X", digest) for digest in DIGESTS),
    "a byte behind the end": GOOD + b"\0",
    "zeros behind the end": GOOD + bytes(400),
}


def test_logs_that_are_not_understood(eventlog: Path) -> None:
    assert dict(zip(REFUSED, read(eventlog, REFUSED.values()), strict=True)) == dict.fromkeys(REFUSED, SECURITY)


def test_names_with_and_without_their_zero(eventlog: Path) -> None:
    names = [b"N" * 63, b"!", b"~", b"BL_33"]
    logs = [header() + event(name + zero) for name in names for zero in (b"", b"\0")]
    assert read(eventlog, logs) == [understood((name, DIGESTS[0])) for name in names for _ in range(2)]


def test_as_many_events_as_there_can_be(eventlog: Path) -> None:
    digests = DIGESTS[:EVENTS_MAX]
    log = header() + b"".join(event(b"N" * 63, digest) for digest in digests)
    assert read(eventlog, [log]) == [understood(*((b"N" * 63, digest) for digest in digests))]


def test_a_log_that_just_fits(eventlog: Path) -> None:
    rest = LOG_MAX - len(GOOD) - len(event(b"", kind=EV_NO_ACTION))
    full, over = (GOOD + event(bytes(rest + more), kind=EV_NO_ACTION) for more in (0, 1))
    answers = read(eventlog, [full, over])
    assert answers[0].startswith(OK) and answers[1] == SHORT


def test_answers_of_op_tee(eventlog: Path) -> None:
    """No log, one that is said to be longer than there is room, errors: each ends with everything given back."""
    records = [
        record(b"", claimed=0),
        record(GOOD, claimed=0),
        record(GOOD, claimed=LOG_MAX + 1),
        record(GOOD, claimed=HUGE),
        record(GOOD, opening=NOT_FOUND),
        record(GOOD, answer=NOT_FOUND),
        record(GOOD, memory=False),
        record(GOOD),
    ]
    answers = output([eventlog], b"".join(records))
    assert answers[:-1] == [*[SECURITY] * 4, *[f"{NOT_FOUND:08x}"] * 2, NO_MEMORY]
    assert answers[-1].startswith(OK)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
def test_changed_logs(eventlog: Path, changes: list[tuple[int, bytes]]) -> None:
    """A log that was changed anywhere is refused, or gives names that are printable."""
    log = bytearray(GOOD)
    for at, data in changes:
        log[at : at + len(data)] = data
    [answer] = read(eventlog, [bytes(log)])
    assert answer == SECURITY or (answer.startswith(OK) and answer.isascii() and answer.isprintable())


# --- CBOR --------------------------------------------------------------------------------------------------

BOUNDARIES = (0, 1, 23, 24, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 63) - 1)
HEADS = {"int": 0, "array": 4, "map": 5, "tag": 6}


@pytest.fixture(scope="session")
def cbor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("cbor"), "cbor", TA / "cbor.c")


def head(major: int, value: int) -> bytes:
    """RFC 8949, sections 3 and 4.2.1: the shortest form, from a library that knows how."""
    encoded = bytearray(cbor2.dumps(value))
    encoded[0] |= major << 5
    return bytes(encoded)


def write(cbor: Path, lines: Iterable[str]) -> list[tuple[bool, bytes]]:
    answers = [line.partition(" ") for line in output([cbor], "".join(f"{line}\n" for line in lines).encode())]
    return [(word == "ok", bytes.fromhex(data)) for word, _, data in answers]


def test_every_form_of_a_length(cbor: Path) -> None:
    cases = [(f"{item} {value}", head(major, value)) for item, major in HEADS.items() for value in BOUNDARIES]
    cases += [(f"{item} {(1 << 64) - 1}", head(major, (1 << 64) - 1)) for item, major in HEADS.items() if major]
    cases += [(f"int {-1 - value}", cbor2.dumps(-1 - value)) for value in BOUNDARIES]
    cases += [(f"bytes {length}", cbor2.dumps(b"x" * length)) for length in BOUNDARIES[:8]]
    cases += [(f"text {length}", cbor2.dumps("x" * length)) for length in BOUNDARIES[:8]]
    cases += [("bool 0", b"\xf4"), ("bool 1", b"\xf5")]
    # Each into a buffer that it just fills, and into one with a byte too few: then its head at most is there.
    answers = write(cbor, [f"{len(data) - short} {item}" for item, data in cases for short in (0, 1)])
    for (item, data), whole, cut in zip(cases, answers[::2], answers[1::2], strict=True):
        assert whole == (True, data), item
        assert cut[0] is False and len(cut[1]) < len(data) and data.startswith(cut[1]), item


def test_overflow_is_sticky(cbor: Path) -> None:
    """What does not fit ends the writing, also of what would fit."""
    assert write(cbor, ["3 int 1 bytes 5 int 1 bool 1", "0 bool 1 int 1", "0", "2 int 23 int 24 int 1"]) == [
        (False, b"\x01\x45"),
        (False, b""),
        (True, b""),
        (False, b"\x17"),
    ]


ITEMS = st.one_of(
    st.tuples(st.just("int"), st.integers(-(1 << 63), (1 << 63) - 1)),
    st.tuples(st.sampled_from(["tag", "array", "map"]), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.sampled_from(["bytes", "text"]), st.integers(0, 300)),
)


def encoded(item: str, number: int) -> list[bytes]:
    """The parts of an item, each of which is written whole or not at all."""
    if item == "int":
        return [cbor2.dumps(number)]
    if item in HEADS:
        return [head(HEADS[item], number)]
    return [head(2 if item == "bytes" else 3, number), b"x" * number]


@given(st.lists(ITEMS, max_size=8), st.integers(0, 700))
def test_any_items_in_any_room(cbor: Path, items: list[tuple[str, int]], room: int) -> None:
    expected, fits = b"", True
    for part in (part for item in items for part in encoded(*item)):
        fits = fits and len(expected) + len(part) <= room
        expected += part if fits else b""
    words = " ".join(f"{item} {number}" for item, number in items)
    assert write(cbor, [f"{room} {words}".strip()]) == [(fits, expected)]


# --- the stub's SHA-256 ------------------------------------------------------------------------------------


def test_sha256_of_the_stub(tmp_path: Path) -> None:
    """By the processor's own instructions, as compiled for it."""
    program = tmp_path / "sha256"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-march=armv8-a+crypto", "-mstrict-align"]
    flags += ["-fno-builtin", "-fno-tree-loop-distribute-patterns", "-mno-outline-atomics"]
    sources = [TESTS / "sha256.c", STUB / "sha256.c"]
    subprocess.run(["aarch64-linux-gnu-gcc", *flags, "-o", program, *sources], check=True)
    lengths = [*range(201), 4095, 4096, 4097, 65535, 65536, (1 << 20) + 55, (1 << 20) + 56, (1 << 20) + 63, 8 << 20]
    stream = hashlib.shake_128(b"what the stub hashes").digest(max(lengths))
    records = b"".join(struct.pack("<Q", length) + stream[-length or len(stream) :] for length in lengths)
    answers = output(["qemu-aarch64-static", program], records)
    assert answers == [hashlib.sha256(stream[-length or len(stream) :]).hexdigest() for length in lengths]


# --- requests ----------------------------------------------------------------------------------------------


def test_requests(tmp_path: Path) -> None:
    """Every value of every byte that is a choice, and one flipped bit in each that is reserved."""
    program = compiled(tmp_path, "request", TA / "request.c")
    claims = RealmClaims(bytes(16), bytes(32), (bytes(32),) * 4, bytes(64), bytes(64))
    good = claims.encode()
    known = {0: "none", 1: "ways", 2: "colours-unconfirmed", 3: "colours-confirmed"}
    assert {replace(claims, cache_partition=text).encode()[10]: text for text in known.values()} == known
    classes = {1: "realm", 2: "secure"}
    assert {replace(claims, domain_class=text).encode()[11]: text for text in classes.values()} == classes
    as_sent, refused = "none realm", "refused"
    cases = {with_byte(good, 10, value): f"{known[value]} realm" if value in known else refused for value in range(256)}
    cases |= {with_byte(good, 11, value): f"none {classes.get(value)}" for value in range(256)}
    cases |= {with_byte(good, 11, value): refused for value in range(256) if value not in classes}
    cases |= {with_byte(good, 8, value): as_sent if value in (1, 2) else refused for value in range(256)}
    cases |= {with_byte(good, 9, value): as_sent if value == 1 else refused for value in range(256)}
    cases |= {with_byte(good, 4, value): as_sent if value in (0, 1) else refused for value in range(256)}
    cases |= {with_byte(good, at, 1 << bit): "refused" for at in (1, 2, 3, 5, 6, 7) for bit in range(8)}
    cases |= {with_byte(good, at, 1 << bit): "refused" for at in range(12, 16) for bit in range(8)}
    assert output([program], b"".join(cases)) == list(cases.values())


# --- evidence ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES.values(), ids=str)
def test_evidence(tmp_path: Path, suite: Suite) -> None:
    """The real composer: its tokens verify, the platform half stays until what it says changes, no byte too many."""
    sources = [TA / f"{name}.c" for name in ("evidence", "cbor", "request")]
    options = ["-Wno-deprecated-declarations", "-lcrypto"]
    include = [FAKES, TA, ROOT / "firmware/common"]
    program = compiled(tmp_path, "evidence", *sources, include=include, options=options)
    claims = RealmClaims(bytes(range(16)), bytes(32), (bytes(32),) * 4, bytes(64), bytes(range(64)), suite=suite)
    other = replace(claims, instance=bytes(16), debug=True)
    room = 16384

    def asked(*cases: tuple[int, int, RealmClaims]) -> tuple[bytes, bytes, list[tuple[str, int, bytes]]]:
        data = b"".join(struct.pack("<II", state, room) + claims.encode() for state, room, claims in cases)
        printed = output([program], data)
        keys, lines = printed[suite.number - 1], printed[len(SUITES) :]
        pak, rak = (bytes.fromhex(key) for key in keys.split())
        answers = [(line + " ").split(" ")[:3] for line in lines]
        return pak, rak, [(code, int(size), bytes.fromhex(token)) for code, size, token in answers]

    cases = ((0x3000, claims), (0x3000, other), (0x1000, other), (0x3000, claims))
    pak, rak, answers = asked(*((state, room, stated) for state, stated in cases))
    assert [code for code, _, _ in answers] == [OK] * 4
    halves = []
    for (_, size, token), (_, stated) in zip(answers, cases, strict=True):
        evidence = decode_evidence(token)
        check_signatures(evidence, decode_key(pak))
        assert size == len(token) and evidence.suite == suite == suite_of(decode_key(pak))
        assert (evidence.realm.rak, evidence.realm.instance) == (rak, stated.instance)
        assert (evidence.realm.challenge, evidence.realm.debug) == (stated.challenge, stated.debug)
        halves.append(cbor2.loads(token).value[44234])
    components = decode_evidence(answers[0][2]).platform.components
    assert [component.name for component in components] == ["BL31", "BL33", *(f"PART_{i}" for i in range(5))]
    assert {component.signer for component in components} == {b"\x5a" * 32}
    assert halves[0] == halves[1] != halves[2]
    assert halves[3] not in halves[:3]  # signed again, by another nonce
    assert [decode_evidence(token).platform.lifecycle for _, _, token in answers] == [0x3000, 0x3000, 0x1000, 0x3000]

    length = len(answers[0][2])
    _, _, answers = asked(*((0x3000, short, claims) for short in (0, 1, length - 1, length)))
    assert [(code, size) for code, size, _ in answers] == [(SHORT, length)] * 3 + [(OK, length)]


def with_byte(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def test_every_program_is_run() -> None:
    run = {"eventlog", "cbor", "sha256", "request", "sealing", "evidence", "fuse_block"}
    assert {path.stem for path in TESTS.glob("*.c")} == run
