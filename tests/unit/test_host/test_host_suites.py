"""A daemon of the SM suite: evidence, verdicts and images of its own suite, and none of another."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from harness import Daemon, run
from harness_certificates import Certificates

from vambrace.attest.challenge import launch_challenge
from vambrace.attest.claims import INSECURE_COMPONENT
from vambrace.attest.policy import Policy
from vambrace.attest.references import ReferenceValues
from vambrace.attest.verify import verify_evidence
from vambrace.config import DomainConfig
from vambrace.suite import NIST, SM, Suite


@pytest.fixture(scope="module")
def national(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("national"), SM)


def of(suite: Suite, certificates: Certificates) -> dict[str, str]:
    """What an image of the owner's has of a suite."""
    owner = certificates.owner
    return {
        "hash": suite.hash,
        "cipher": suite.cipher,
        "owner": owner.certificate_pem,
        "channel": owner.channel_pem,
    }


def test_a_realm_from_its_token_to_its_start(tmp_path: Path, national: Certificates) -> None:
    async def test(daemon: Daemon) -> None:
        nonce, handle = os.urandom(32), str(uuid.uuid4())
        body = {"name": "patients", "image": await daemon.upload(), "nonce": nonce.hex()}
        await daemon.call("PUT", f"/v1/domains/{handle}", json=body)
        vmm = await daemon.vmm()
        await vmm.request("load")
        view = await daemon.state(handle, "awaiting-verdict")
        token = (await daemon.get(f"/v1/domains/{handle}/token")).body
        realm = verify_evidence(
            token,
            roots=[national.vendor.certificate],
            references=ReferenceValues((INSECURE_COMPONENT,)),
            challenge=launch_challenge(nonce, bytes.fromhex(view["instance"]), SM),
            measurement=bytes.fromhex(view["measurement"]),
            personalization=national.owner.personalization(),
            policy=Policy(allow_insecure=True, hash_algorithm=SM.hash),
        )
        assert realm.token_digest == SM.digest(token)
        # By somebody else's key of SM2, and over another hash of the token.
        assert (await daemon.verdict(handle, "yes", signer=national.stranger)).status == 403
        wrong = national.owner.sign_verdict(realm.instance, NIST.digest(token), yes=True)
        assert (await daemon.verdict_bytes(handle, wrong)).status == 403
        assert (await daemon.verdict(handle, "yes")).status == 200
        await vmm.request("start")
        await daemon.state(handle, "running")

    run(tmp_path, national, test, suite=SM)


@pytest.mark.parametrize(("ours", "theirs"), [(NIST, SM), (SM, NIST)], ids=str)
def test_an_image_of_another_suite(
    tmp_path: Path, certificates: Certificates, national: Certificates, ours: Suite, theirs: Suite
) -> None:
    mine, foreign = (certificates, national) if ours == NIST else (national, certificates)

    async def test(daemon: Daemon) -> None:
        config: DomainConfig = daemon.config(**of(theirs, foreign))
        assert config.suite == theirs
        image = await daemon.upload(**of(theirs, foreign))
        body = {"name": "patients", "image": image, "nonce": bytes(32).hex()}
        answer = await daemon.call("PUT", f"/v1/domains/{uuid.uuid4()}", json=body)
        assert answer.status == 422, answer.body
        assert f"the image is of the {theirs}, this host of the {ours}" in answer.json["detail"]

    run(tmp_path, mine, test, suite=ours)


def test_owners_and_vendors_of_another_suite(
    tmp_path: Path, certificates: Certificates, national: Certificates
) -> None:
    async def test(daemon: Daemon) -> None:
        put = "/v1/platform/owner"
        answer = await daemon.call("PUT", put, data=certificates.owner.certificate_pem.encode())
        assert answer.status == 422 and "not SM2" in answer.json["detail"]
        answer = await daemon.call("PUT", put, data=national.owner.certificate_pem.encode())
        assert answer.status == 200, answer.body

    run(tmp_path, national, test, suite=SM)
