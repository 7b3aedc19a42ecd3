"""The operator has the host's API and nothing else: it gives no memory, no console, no percentage, no start."""

from __future__ import annotations

import json
import ssl
import urllib.request
from urllib.error import HTTPError

import pytest
from user import Pair

from vambrace.client.channel import Channel
from vambrace.errors import DomainError

GUESSES = ("memory", "dump", "stats", "logs", "results", "encrypt", "percent", "start", "agent")


def call(tls: ssl.SSLContext, method: str, url: str, body: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, method=method), timeout=60, context=tls
        ) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def test_operator(pair: Pair) -> None:
    """No call to the running daemon says a word of what is in a Realm, or changes what its owner wants."""
    realm, host = pair.realms[0], pair.user.host
    instance = bytes.fromhex(realm.state.instance)
    percents = [zone["percent"] for zone in realm.stats()]
    base = f"{host.url}/v1/domains/{realm.uuid}"
    said = b""
    for guess in GUESSES:
        for method in ("GET", "PUT", "POST"):
            status, answer = call(host.tls, method, f"{base}/{guess}", b'{"zone": 2, "percent": 0}')
            assert status == 404, (method, guess)
            said += answer
    status, answer = call(host.tls, "GET", f"{base}/console")  # Normal VMs have one, and Realms that say so
    assert status == 409
    said += answer
    order = pair.user.owner.sign_percent(instance, 2, 0, 1 << 62)  # as if caught on its way
    for body in (order, b"", json.dumps({"state": "running", "percent": 0}).encode()):
        for path in ("", "/verdict", "/token"):
            for method in ("PUT", "POST", "PATCH"):
                status, answer = call(host.tls, method, base + path, body)
                assert 400 <= status < 500, (method, path)
                said += answer
    for url in (base, f"{base}/token", f"{host.url}/v1/domains", f"{host.url}/v1/host", f"{host.url}/v1/images"):
        status, answer = call(host.tls, "GET", url)
        assert status == 200
        said += answer
    assert realm.uuid.encode() in said
    for secret in pair.secrets:
        assert secret not in said
        assert secret.hex().encode() not in said
    assert b"holding" not in said
    # The channel is a pipe into the Realm, whose end there knows the owner only.
    stranger = pair.user.stranger
    with pytest.raises(DomainError):
        Channel(host, realm.uuid, stranger.certificate_path, stranger.key_path, lambda *_: pytest.fail("connected"))
    assert [zone["percent"] for zone in realm.stats()] == percents
    assert realm.info().state == "running"
