"""Evidence: how fast a verifier is, on one processor; how long a launch token takes on the emulated server.

Rows (docs/performance.md): ``attest.verify`` in tokens per second, against the two signature checks alone;
``attest.refuse`` in milliseconds; ``attest.launch-token`` in milliseconds, with TrustZone's share of it.
``VAMBRACE_BENCH_ROUNDS`` (25) rounds, in each of which everything runs once. Only the processor's time counts for a
verifier, and of that the fastest round: what else a machine does makes no round faster.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from bench.parts import launch_token
from bench.parts.evidence import POLICY, Platform, anchors, new_key
from bench.report import Report, rounds
from vambrace.attest.appraisal import appraise
from vambrace.attest.cbor import decode
from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.token import decode_token
from vambrace.attest.verify import accepted
from vambrace.errors import MalformedEvidence

ROUNDS = rounds(25)
TOKENS = 50
BOUND, ONE, NEW = "two signature checks alone", "tokens of one platform", "tokens of platforms never seen"


def run(report: Report) -> None:
    verification(report)
    refusals(report)
    launch_token.run(report)


def verification(report: Report) -> None:
    """Whole appraisals, from bytes to the verified type. What they are held against is two ECDSA checks by libcrypto
    on P-256: the keys are loaded, signatures and signed bytes stand ready."""
    vendor = VendorAuthority.create()
    trusted = anchors(vendor)
    challenge = os.urandom(64)
    one = Platform(vendor)

    def verify(tokens: Sequence[bytes]) -> float:
        return _per_second(
            lambda token: accepted(appraise(token, anchors=trusted, policy=POLICY, challenge=challenge)), tokens
        )

    found: dict[str, list[float]] = {BOUND: [], ONE: [], NEW: []}
    checks = _signatures()
    for _ in range(ROUNDS):
        tokens = [one.token(challenge) for _ in range(TOKENS)]
        strangers = [Platform(vendor).token(challenge) for _ in range(TOKENS)]
        found[BOUND].append(_per_second(_check_two, checks))
        found[ONE].append(verify(tokens))
        found[NEW].append(verify(strangers))
    for subject, rates in found.items():
        report.add("attest.verify", subject, max(rates), "1/s")
    for subject in (ONE, NEW):
        report.compare("attest.verify", subject, BOUND)


def refusals(report: Report) -> None:
    """How long hostile bytes keep a verifier busy: as a token, and where the limit of size is not in the way."""
    megabyte = 1 << 20
    hostile = {
        "1 MB of nested arrays": b"\x81" * megabyte,
        "1 MB of nested tags": b"\xc1" * megabyte,
        "1 MB of empty arrays in one": b"\x9a" + (megabyte - 5).to_bytes(4, "big") + b"\x80" * (megabyte - 5),
        "1 MB of maps in maps": b"\xa1\x00" * (megabyte // 2),
    }
    for subject, data in hostile.items():
        for name, read in (
            ("attest.refuse.token", lambda data: decode_token(data)),
            ("attest.refuse.cbor", lambda data: decode(data, limit=2 * megabyte)),
        ):
            report.add(name, subject, max(_refused(read, data) for _ in range(ROUNDS)) * 1000, "ms")


Item = TypeVar("Item")
Check = tuple[EllipticCurvePublicKey, bytes, bytes]


def _signatures() -> list[tuple[Check, Check]]:
    """Pairs of signatures, each by another key over some hundred bytes, as tokens have them."""
    scheme = ECDSA(SHA256())

    def one(length: int) -> Check:
        key, data = new_key(), os.urandom(length)
        return key.public_key(), key.sign(data, scheme), data

    return [(one(700), one(500)) for _ in range(TOKENS)]


def _check_two(pair: tuple[Check, Check]) -> None:
    for key, signature, data in pair:
        key.verify(signature, data, ECDSA(SHA256()))


def _per_second(work: Callable[[Item], object], items: Sequence[Item]) -> float:
    start = time.process_time()
    for item in items:
        work(item)
    return len(items) / (time.process_time() - start)


def _refused(read: Callable[[bytes], object], data: bytes) -> float:
    start = time.perf_counter()
    with contextlib.suppress(MalformedEvidence):
        read(data)
        raise AssertionError("hostile bytes were accepted")
    return time.perf_counter() - start
