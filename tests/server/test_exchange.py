"""Two Realms exchange data through ordinary programs; a third one that was not named is refused."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from machine import eventually
from user import User, await_log

from vambrace.client.realm import Realm
from vambrace.errors import VambraceError

PORT = 8000


@contextmanager
def started(
    user: User, name: str, program: list[str], endpoint: dict[str, object], **more: object
) -> Iterator[Realm]:
    """A running Realm with the measured name ``name``."""
    # Room for all that they use in the window of 50 %: what is slow here is not what is tested.
    application = {"name": "exchange", "command": ["python3", *program], "memory": "64M", **more}
    bundle = user.bundle(application, name=name, endpoints=[{"port": PORT, **endpoint}])
    realm = user.create(bundle, name=f"{name}-{endpoint.get('realm')}")
    try:
        realm.verify()
        realm.approve()
        realm.start()
        yield realm
    finally:
        realm.abandon()


def reached_by_an_ordinary_client(realm: Realm, digest: str) -> None:
    """Python's web server in the Realm, curl outside: two downloads at once, and an upload."""
    sent = os.urandom(1 << 20)
    refused: list[VambraceError] = []
    with realm.forward(PORT, told=refused.append) as local:
        curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "240", f"http://127.0.0.1:{local.address[1]}/"]
        running = [subprocess.Popen(curl, stdout=subprocess.PIPE) for _ in range(2)]
        assert [hashlib.sha256(each.communicate()[0]).hexdigest() for each in running] == [digest] * 2
        upload = subprocess.run([*curl, "--data-binary", "@-"], input=sent, capture_output=True, check=True)
        assert upload.stdout.decode() == hashlib.sha256(sent).hexdigest()
    assert not refused


def test_two_realms_and_a_third(user: User) -> None:
    with ExitStack() as stack:
        registry = stack.enter_context(
            started(
                user, "registry", ["serve.py", str(PORT)], {"offer": "records", "realm": "ward"}, publish=[PORT]
            )
        )
        said = await_log(registry, "exchange", b"\n").decode()
        digest = said.removeprefix("serving ").strip()
        reached_by_an_ordinary_client(registry, digest)
        # Of the same owner, and it names the registry, which does not name it.
        third = stack.enter_context(started(user, "third", ["ask.py"], {"connect": "records", "realm": "registry"}))
        tried = await_log(third, "exchange", b"\n").decode()
        assert "reset" in tried and "got" not in tried, tried

        ward = stack.enter_context(started(user, "ward", ["ask.py"], {"connect": "records", "realm": "registry"}))
        done = await_log(ward, "exchange", b"done").decode()
        assert f"got {digest}\nsent True\ndone\n" in done, done

        _, row = ward.messages()
        assert (row["peer"], row["role"]) == ("registry", "connect")
        assert row["connections"] >= 2 and row["sent"] > 2 << 20 and row["received"] > 4 << 20
        _, other = registry.messages()
        assert (other["peer"], other["sent"], other["received"]) == ("ward", row["received"], row["sent"])
        (denied,) = third.messages()
        assert denied["peer"] is None and denied["refused"] >= 1 and not denied["sent"] + denied["received"]
        assert b"got" not in await_log(third, "exchange", b"failed")

        # The operator sees it a minute later, in steps.
        names = 'caller="ward-registry",endpoint="records",offerer="registry-ward"'

        def metric(pattern: str) -> float:
            found = re.search(rf"^{pattern} (\S+)$", user.host._request("GET", "/metrics").decode(), re.MULTILINE)
            return float(found[1]) if found else 0.0

        connections = rf"vambrace_message_connections_total\{{{names}\}}"
        assert eventually(lambda: metric(connections) >= 2, 90)
        assert metric(rf'vambrace_message_bytes_total\{{{names},to="caller"\}}') >= 3 << 20
        assert metric(r'vambrace_message_denied_total\{realm="third-registry"\}') >= 1

        # A Realm that ends is nobody's peer any more; what was exchanged with it stays counted.
        registry.destroy()
        (left,) = ward.messages()
        assert (left["peer"], left["connections"], left["sent"]) == (None, row["connections"], row["sent"])
