"""The verifier as a service, run for real on loopback; every answer is checked against openapi.yaml."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from attest_factory import INSTANCE, MEASUREMENT, NONCE, PERSONALIZATION, new_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from verifier_world import SPECIFICATION, World, claims_of, errors, make_world, question, run, running, verdict

from vambrace.attest.challenge import channel_challenge, launch_challenge
from vambrace.verifier.questions import MAX_REQUEST


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_evidence_is_appraised(world: World) -> None:
    async def test() -> None:
        async with running(world.settings) as client:
            nonce = base64.b64encode(bytes(16)).decode()
            claims = await claims_of(client, await client.appraise(question(world, nonce=nonce)), bytes(16))
            assert verdict(claims) == "accepted"
            assert claims["submods"]["realm"]["ear_appraisal_policy_ids"] == ["tag:example.org,2026:patients"]
            told = base64.urlsafe_b64decode(claims["submods"]["realm"]["eat_nonce"])
            assert told == launch_challenge(NONCE, INSTANCE)
            described = (await client.call("GET", "/v1/verifier")).json
            assert [policy["name"] for policy in described["policies"]] == ["patients"]
            assert (await client.call("GET", "/v1/openapi.json")).json == SPECIFICATION

    run(test)


def test_the_three_bindings(world: World) -> None:
    spki = new_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    token = world.platform.token(realm=lambda claims: claims.update({10: channel_challenge(NONCE, spki, INSTANCE)}))
    channel = {
        "evidence": base64.b64encode(token).decode(),
        "binding": {
            "kind": "channel",
            "nonce": NONCE.hex(),
            "instance": INSTANCE.hex(),
            "key": base64.b64encode(spki).decode(),
        },
    }
    raw = {"binding": {"kind": "challenge", "challenge": launch_challenge(NONCE, INSTANCE).hex()}}
    stale = {"binding": {"kind": "launch", "nonce": "00" * 32}}
    relayed = {**channel, "binding": {**channel["binding"], "instance": "00" * 16}}

    async def test() -> None:
        async with running(world.settings) as client:
            for changes in (channel, raw):
                claims = await claims_of(client, await client.appraise(question(world, **changes)))
                assert verdict(claims) == "accepted"
            for changes, error in ((stale, "ChallengeMismatch"), (relayed, "AnotherRealm")):
                claims = await claims_of(client, await client.appraise(question(world, **changes)))
                assert verdict(claims) == "refused" and error in errors(claims)

    run(test)


def test_an_expectation_only_demands_more(world: World) -> None:
    (world.folder / "policies" / "nothing.toml").write_text('schema = "vambrace.policy/1"\n')

    async def test() -> None:
        async with running(world.settings) as client:
            right = {"measurement": MEASUREMENT.hex(), "owner": PERSONALIZATION.hex()}
            claims = await claims_of(client, await client.appraise(question(world, expect=right)))
            assert verdict(claims) == "accepted"
            for wrong, error in (
                ({"measurement": "00" * 32}, "MeasurementMismatch"),
                ({"owner": "00" * 64}, "OwnerMismatch"),
            ):
                claims = await claims_of(client, await client.appraise(question(world, expect=wrong)))
                assert verdict(claims) == "refused" and errors(claims) == {error}
            # Who asks cannot make a policy accept what it does not name.
            claims = await claims_of(client, await client.appraise(question(world, policy="nothing", expect=right)))
            assert verdict(claims) == "refused" and errors(claims) == {"MeasurementMismatch"}

    run(test)


def test_as_cwt(world: World) -> None:
    async def test() -> None:
        async with running(world.settings) as client:
            answer = await client.appraise(question(world), headers={"Accept": "application/eat-cwt"})
            assert answer.headers["Content-Type"].startswith("application/eat-cwt")
            assert b"tag:ietf.org,2026:rats/ear#04" in answer.body

    run(test)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"evidence": None}, 400),
        ({"evidence": 7}, 400),
        ({"evidence": "%%"}, 400),
        ({"evidence": ""}, 400),
        ({"evidence": base64.b64encode(b"rubbish").decode()}, 422),
        ({"policy": "unknown"}, 404),
        ({"policy": "../patients"}, 400),
        ({"policy": None}, 400),
        ({"binding": None}, 400),
        ({"binding": {"kind": "x"}}, 400),
        ({"binding": {"kind": "launch", "nonce": "00"}}, 400),
        ({"binding": {"kind": "launch", "nonce": NONCE.hex().upper()}}, 400),
        ({"binding": {"kind": "launch", "nonce": NONCE.hex(), "more": 1}}, 400),
        ({"binding": {"kind": "challenge", "challenge": 7}}, 400),
        ({"expect": {"measurement": "00"}}, 400),
        ({"expect": {"surprise": 1}}, 400),
        ({"expect": []}, 400),
        ({"nonce": base64.b64encode(bytes(7)).decode()}, 400),
        ({"surprise": 1}, 400),
    ],
)
def test_what_is_no_question(world: World, changes: dict[str, Any], status: int) -> None:
    async def test() -> None:
        async with running(world.settings) as client:
            answer = await client.appraise(question(world, **changes))
            assert answer.status == status, answer.body
            assert answer.headers["Content-Type"].startswith("application/problem+json")

    run(test)


def test_what_is_no_request(world: World) -> None:
    async def test() -> None:
        async with running(world.settings) as client:
            path, kind = "/v1/appraisals", {"Content-Type": "application/json"}
            cases: list[tuple[bytes, dict[str, str], int]] = [
                (b"", kind, 400),
                (b"[]", kind, 400),
                (b"\xff", kind, 400),
                (b"[" * 50000, kind, 400),
                (b"{}", {"Content-Type": "text/plain"}, 400),
                (b" " * (MAX_REQUEST + 1), kind, 413),
            ]
            for body, headers, status in cases:
                answer = await client.call("POST", path, data=body, headers=headers)
                assert answer.status == status, answer.body
            assert (await client.call("GET", path)).status == 405
            assert (await client.call("GET", "/v1/other")).status == 404

    run(test)
