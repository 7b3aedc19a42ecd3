"""skopeo, which carries images to and from registries: its own settings for names, credentials and certificates.

A registry is anybody's: every answer is bounded in size and time here, and in what it must be in ``remote_images``.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from vambrace.debian.tools import find
from vambrace.errors import BuildError, NoSpace, RegistryError
from vambrace.image.foreign import read_manifest

MAX_MANIFEST: Final = 64 << 10
#: Bytes beside its blobs that are written of an image: manifests, signatures.
_BESIDE: Final = 16 << 20
_LOOK_SECONDS: Final = 0.2  # between two looks at how much has been written
_ANSWER_SECONDS: Final = 60
_SLOWEST: Final = 128 << 10  # bytes per second, below which a registry takes too long
_TOO_MUCH: Final = "it is too much"
_MESSAGE = re.compile(r'level=fatal msg="((?:[^"\\]|\\.)*)"')
#: What skopeo says, what it means here, and what to do.
_TROUBLES: Final = (
    (_TOO_MUCH, "sends more than its manifest states", "do not use this image"),
    ("file too large", "sends more than its manifest states", "do not use this image"),
    ("Digest did not match", "sends something that has not the digest asked for", "do not use this image"),
    ("does not match", "sends something that has not the digest asked for", "do not use this image"),
    ("Source image rejected", "holds an image that the policy refuses", "see containers-policy.json(5)"),
    ("x509", "has a certificate that is not trusted", "--cert-dir names a folder with its CA's"),
    ("server gave HTTP response", "speaks no TLS", "--no-tls-verify, if that is meant"),
    ("unauthorized", "wants other credentials", "'skopeo login', or --authfile"),
    ("authentication required", "wants other credentials", "'skopeo login', or --authfile"),
    ("context deadline exceeded", "took too long", "try again"),
    ("redirects", "redirects without end", "correct the reference"),
    ("connection refused", "cannot be reached", "correct the reference, or try again"),
    ("no such host", "cannot be reached", "correct the reference, or try again"),
)
#: What to do where the command has no options for registries, by what it means.
_WITHOUT_OPTIONS: Final = {
    "has a certificate that is not trusted": "put its CA's into /etc/containers/certs.d, see containers-certs.d(5)",
    "speaks no TLS": "if that is meant, fetch it first: 'skopeo copy --src-tls-verify=false … oci:FOLDER:TAG'",
    "wants other credentials": "'skopeo login'",
}
_UNKNOWN: Final = ("manifest unknown", "name unknown", "not found", "404")


@dataclass(frozen=True)
class Skopeo:
    """How to reach registries; what is None is as skopeo's own configuration has it. ``policy`` is what an image must
    satisfy to be copied from one (containers-policy.json(5))."""

    authfile: Path | None = None
    cert_dir: Path | None = None
    tls_verify: bool | None = None
    policy: Path | None = None

    def manifest(self, reference: str, most: int = MAX_MANIFEST, *, options: bool = True) -> bytes | None:
        """The manifest of ``reference`` (docker://…), None where there is none; nothing of it is elsewhere.
        ``options``: whether the command has some for registries. Raises ``RegistryError``, ``ImageError``."""
        words = [*self._global(_ANSWER_SECONDS), "inspect", "--raw", *self._reach(""), reference]
        done = self._run(words, None)
        if done.returncode:
            message = _message(done)
            if any(word in message for word in _UNKNOWN):
                return None
            raise _explained(reference, message, options=options)
        if len(done.stdout) > most:
            raise RegistryError(f"{reference}: its manifest has {len(done.stdout)} bytes", hint="this is no such image")
        read_manifest(done.stdout, reference)
        return done.stdout

    def config(self, reference: str) -> bytes:
        """The configuration's blob of ``reference``, and nothing else of it. Raises ``RegistryError``."""
        words = [*self._global(_ANSWER_SECONDS), "inspect", "--config", "--raw", *self._reach(""), reference]
        done = self._run(words, None)
        if done.returncode:
            raise _explained(reference, _message(done))
        return done.stdout

    def fetch(
        self, reference: str, layout: Path, name: str, *, largest: int, total: int, trusted: bool = False
    ) -> None:
        """Copy ``reference`` to the OCI layout in the folder ``layout``, as ``name``. No file becomes larger than
        ``largest`` bytes, all of them not than ``total``, which bounds the time, too. ``trusted``: only if the policy
        says so.

        Raises ``RegistryError``, ``NoSpace``.
        """
        words = [*self._global(_ANSWER_SECONDS + total // _SLOWEST, trusted=trusted)]
        # The policy has judged the signatures by then; a layout has no place for them.
        words += ["copy", "--quiet", "--preserve-digests", "--remove-signatures"]
        words += [*self._reach("src-"), reference, f"oci:{layout}:{name}"]
        self._check(self._run(words, largest + MAX_MANIFEST, layout, total), reference, layout)

    def obtain(
        self, source: str, folder: Path, *, architecture: str, largest: int, total: int, seconds: int
    ) -> None:
        """Copy a container image from anywhere that skopeo knows to the new ``folder`` (``dir:``), as it is; of an
        index the image for Linux on ``architecture``. Policies of this machine are obeyed. No file becomes larger than
        ``largest`` bytes, all of them not than ``total``. What is on this machine is copied without a network, where
        the machine lets us have none.

        Raises ``RegistryError`` where a registry is in the way, ``BuildError`` where a file is, ``NoSpace``.
        """
        words = ["--command-timeout", f"{seconds}s", "--override-os=linux", f"--override-arch={architecture}"]
        words += ["copy", "--quiet", *self._reach("src-"), source, f"dir:{folder}"]
        done = self._run(words, largest, folder, total, alone=not source.startswith("docker://"))
        if done.returncode and not source.startswith("docker://") and "no space left" not in _message(done):
            said = _message(done)
            if said == _TOO_MUCH:
                raise BuildError(f"{source} holds more than {total >> 30} GiB", hint="take something out of it")
            # The skopeo of Debian 12 reads no compressed archives.
            compressed = source.startswith("docker-archive:") and "tar component" in said
            hint = "if the archive is compressed, 'gunzip' it first" if compressed else "'skopeo inspect' may tell more"
            raise BuildError(f"{source}: {said[-300:]}", hint=hint)
        self._check(done, source, folder, options=False)

    def send(self, layout: Path, name: str, reference: str, *, total: int, index: bool = False) -> None:
        """Copy ``name`` of the OCI layout to ``reference``; of an ``index`` nothing but itself.

        Raises ``RegistryError``.
        """
        words = [*self._global(_ANSWER_SECONDS + total // _SLOWEST), "copy", "--quiet"]
        # An index is written anew by skopeo, and by older ones without artifact types.
        words += [*(["--multi-arch", "index-only"] if index else ["--preserve-digests"]), *self._reach("dest-")]
        self._check(self._run([*words, f"oci:{layout}:{name}", reference]), reference, layout)

    def _global(self, seconds: int, *, trusted: bool = False) -> list[str]:
        words = ["--command-timeout", f"{seconds}s"]
        return [*words, "--policy", str(self.policy)] if trusted and self.policy else [*words, "--insecure-policy"]

    def _reach(self, side: str) -> list[str]:
        words = []
        if self.authfile:
            words += ["--authfile", str(self.authfile)]
        if self.cert_dir:
            words += [f"--{side}cert-dir", str(self.cert_dir)]
        if self.tls_verify is not None:
            words.append(f"--{side}tls-verify={str(self.tls_verify).lower()}")
        return words

    def _run(
        self,
        words: Sequence[str],
        largest: int | None = None,
        folder: Path | None = None,
        total: int = 0,
        *,
        alone: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """skopeo with ``words``, ended when it has written more than ``total`` bytes into ``folder`` and beside it.
        ``alone``: without a network."""

        def bound() -> None:
            if largest is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

        command = [*(_without_network() if alone else ()), find("skopeo"), *words]
        environment = {**os.environ, "LC_ALL": "C"}
        with contextlib.ExitStack() as stack:
            written: list[Path] = []
            if folder is not None:
                # What it unpacks on the way is counted, and on the same disk.
                work = tempfile.TemporaryDirectory(prefix=".skopeo-", dir=folder.parent, ignore_cleanup_errors=True)
                environment["TMPDIR"] = stack.enter_context(work)
                written = [Path(work.name), folder]
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=environment,
                    preexec_fn=bound,
                )
            )
            stack.callback(process.kill)
            most = _size(written) + total + _BESIDE
            while True:
                try:
                    out, errors = process.communicate(timeout=_LOOK_SECONDS if written else None)
                    return subprocess.CompletedProcess(command, process.returncode, out, errors)
                except subprocess.TimeoutExpired:
                    if _size(written) > most:
                        return subprocess.CompletedProcess(command, 1, b"", _TOO_MUCH.encode())

    def _check(
        self, done: subprocess.CompletedProcess[bytes], reference: str, place: Path, *, options: bool = True
    ) -> None:
        if done.returncode:
            message = _message(done)
            if "no space left" in message:
                raise NoSpace(str(place), "the image", hint="free some")
            raise _explained(reference, message, options=options)


@cache
def _without_network() -> tuple[str, ...]:
    """What starts a program in a network namespace with nothing in it; empty where there may be none."""
    for words in (("unshare", "--net"), ("unshare", "--user", "--map-current-user", "--net")):
        try:
            if subprocess.run([*words, "true"], capture_output=True).returncode == 0:
                return words
        except OSError:
            break
    return ()


def _size(folders: Sequence[Path]) -> int:
    """Bytes of all files there, some of which may go meanwhile."""
    total = 0
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += Path(place, name).lstat().st_size
    return total


def _message(done: subprocess.CompletedProcess[bytes]) -> str:
    """The last words of skopeo, which may repeat a registry's: one line, no control characters."""
    text = done.stderr.decode(errors="replace")
    found = _MESSAGE.findall(text)
    said = found[-1].replace('\\"', '"') if found else text.strip()[-300:]
    return "".join(sign if sign.isprintable() else " " for sign in said)


def _explained(reference: str, message: str, *, options: bool = True) -> RegistryError:
    for words, meaning, hint in _TROUBLES:
        if words in message:
            hint = hint if options else _WITHOUT_OPTIONS.get(meaning, hint)
            return RegistryError(f"{reference}: the registry {meaning}", hint=hint)
    if any(word in message for word in _UNKNOWN):
        return RegistryError(f"{reference}: the registry has no such image", hint="correct the reference")
    return RegistryError(f"{reference}: {message[-300:]}", hint="see skopeo(1)")
