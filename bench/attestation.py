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
from dataclasses import replace
from functools import partial
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from bench.parts import launch_token
from bench.parts.evidence import POLICY, Platform, anchors
from bench.report import Report, rounds
from vambrace.attest.appraisal import appraise
from vambrace.attest.cbor import decode
from vambrace.attest.endorsement import VendorAuthority
from vambrace.attest.suites import generate
from vambrace.attest.token import decode_token
from vambrace.attest.verify import accepted
from vambrace.errors import MalformedEvidence
from vambrace.suite import NIST, SUITES, Suite

ROUNDS = rounds(25)
TOKENS = 50
BOUND, ONE, NEW = "two signature checks alone", "tokens of one platform", "tokens of platforms never seen"


def run(report: Report) -> None:
    for suite in SUITES.values():
        verification(report, suite)
    refusals(report)
    launch_token.run(report)


def verification(report: Report, suite: Suite) -> None:
    """Whole appraisals, from bytes to the verified type. What they are held against is two signature checks by
    libcrypto: the keys are loaded, signatures and signed bytes stand ready."""
    vendor = VendorAuthority.create(suite=suite)
    policy = replace(POLICY, hash_algorithm=suite.hash)
    trusted = anchors(vendor)
    challenge = os.urandom(64)
    one = Platform(vendor)

    def verify(tokens: Sequence[bytes]) -> float:
        return _per_second(
            lambda token: accepted(appraise(token, anchors=trusted, policy=policy, challenge=challenge)), tokens
        )

    found: dict[str, list[float]] = {BOUND: [], ONE: [], NEW: []}
    checks = _signatures(suite)
    for _ in range(ROUNDS):
        tokens = [one.token(challenge) for _ in range(TOKENS)]
        strangers = [Platform(vendor).token(challenge) for _ in range(TOKENS)]
        found[BOUND].append(_per_second(_check_two, checks))
        found[ONE].append(verify(tokens))
        found[NEW].append(verify(strangers))
    # The usual suite goes without saying.
    name = {subject: subject if suite == NIST else f"{subject}, {suite}" for subject in found}
    for subject, rates in found.items():
        report.add("attest.verify", name[subject], max(rates), "1/s")
    for subject in (ONE, NEW):
        report.compare("attest.verify", name[subject], name[BOUND])


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
Check = Callable[[], object]


def _signatures(suite: Suite) -> list[tuple[Check, Check]]:
    """Pairs of signatures, each by another key over some hundred bytes, as tokens have them."""

    def one(length: int) -> Check:
        key, data = generate(suite), os.urandom(length)
        # By the library's own call, and in its own form: what a verifier does around it is not in the bound.
        if isinstance(key, EllipticCurvePrivateKey):
            return partial(key.public_key().verify, key.sign(data, ECDSA(SHA256())), data, ECDSA(SHA256()))
        return partial(key.public_key().verifies, key.sign(data), data)

    return [(one(700), one(500)) for _ in range(TOKENS)]


def _check_two(pair: tuple[Check, Check]) -> None:
    for check in pair:
        check()


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
