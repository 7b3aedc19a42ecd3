"""Genuine Arm CCA tokens: read, verified with their keys, and refused where only ours will do."""

from __future__ import annotations

import json

import pytest
from attest_factory import Platform, new_key, verify
from cca_vectors import VECTORS, Vector

from vambrace.attest import profiles
from vambrace.attest.claims import UnverifiedCcaRealm
from vambrace.attest.show import describe
from vambrace.attest.signatures import check_signatures
from vambrace.attest.token import decode_evidence, decode_token
from vambrace.attest.verify import verify_launch
from vambrace.errors import SignatureInvalid, UnknownProfile

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)


def test_there_are_tokens_of_each_form() -> None:
    assert {vector.expected["profile"] for vector in VECTORS} == {profiles.CCA_LEGACY.name, profiles.CCA_1.name}
    assert {vector.expected["collection"] for vector in VECTORS} == {"LEGACY", "RECORDS"}


@each_vector
def test_genuine_tokens_verify_with_their_keys(vector: Vector) -> None:
    token = decode_token(vector.token)
    check_signatures(token, vector.platform_key)
    assert token.profile.name == vector.expected["profile"]
    assert token.collection.name == vector.expected["collection"]
    assert len(token.platform.components) == vector.expected["components"]
    assert token.platform.lifecycle == vector.expected["lifecycle"]
    assert isinstance(token.realm, UnverifiedCcaRealm)


@each_vector
def test_they_do_not_verify_with_another_key(vector: Vector) -> None:
    with pytest.raises(SignatureInvalid):
        check_signatures(decode_token(vector.token), new_key().public_key())


@each_vector
def test_a_user_of_vambrace_accepts_none(vector: Vector) -> None:
    platform = Platform()
    with pytest.raises(UnknownProfile):
        decode_evidence(vector.token)
    with pytest.raises(UnknownProfile):
        verify(vector.token, platform)
    with pytest.raises(UnknownProfile):
        verify_launch(
            vector.token,
            nonce=bytes(32),
            roots=platform.roots,
            references=platform.references,
            measurement=bytes(32),
            personalization=bytes(64),
        )


@each_vector
def test_they_are_shown(vector: Vector) -> None:
    described = json.loads(json.dumps(describe(vector.token)))
    assert described["verified"] is False
    assert described["profile"] == vector.expected["profile"]
    assert len(described["platform"]["components"]) == vector.expected["components"]
    assert "instance" not in described["realm"]
