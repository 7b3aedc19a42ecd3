"""What a verifier accepts. The defaults are safe: whatever is not named is refused.

A policy file is TOML (docs/verification.md has every key)::

    schema = "vambrace.policy/1"
    id = "https://example.org/policies/patients/3"

    [platform]
    revocation = "require"
    revocation-days = 7

    [realm]
    measurements = ["b9a1…"]
    owners = ["77c0…"]
    cache = "confirmed"

``Policy.table`` gives the same as a JSON-able object, so that a policy can be stored, hashed and compared.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from vambrace.attest.claims import CACHE_PARTITIONS, DOMAIN_CLASSES, HASH_BYTES
from vambrace.errors import ConfigError

SCHEMA: Final = "vambrace.policy/1"
#: Whose tokens: ours, and those of Arm CCA hardware. Each has trust anchors of its own.
PROFILES: Final = ("vambrace", "cca")
MAX_POLICY: Final = 256 << 10

SECURED: Final = 0x3000
NOT_PROVISIONED: Final = 0x1000
DEBUG: Final = 0x5000
DECOMMISSIONED: Final = 0x6000
# Life cycle states of the Arm CCA platform token, by the upper byte.
LIFECYCLES: Final = {
    0x00: "unknown",
    0x10: "not provisioned (assembly and test)",
    0x20: "being provisioned",
    0x30: "secured",
    0x40: "debug of the non-CCA platform",
    0x50: "recoverable debug",
    0x60: "decommissioned",
}
# What a policy file calls those that it may allow.
_LIFECYCLE_WORDS: Final = {"secured": SECURED, "not-provisioned": NOT_PROVISIONED, "non-cca-debug": 0x4000}

# What may be demanded of the cache: that it is divided at all, or that it is certain to be.
CACHE_DEMANDS: Final = {
    "divided": frozenset(CACHE_PARTITIONS) - {"none"},
    "confirmed": frozenset({"ways", "colours-confirmed"}),
}
REGISTERS: Final = 4  # run-time measurement registers of a Realm
ANY: Final = "any"

Register = frozenset[bytes] | None


@dataclass(frozen=True)
class Policy:
    """``None`` stands for "any" everywhere.

    ``allow_insecure`` also accepts a platform that is not provisioned; such a platform proves nothing.
    ``platforms`` are instance identities (UEID, 33 bytes). ``allow_extensions`` accepts a CCA platform with devices
    that were added while it ran, for which there are no reference values. ``measurements`` are launch measurements;
    where there are none, signed reference values for Realms must know it. ``owners`` are personalization values (64
    bytes).
    ``registers`` has for each run-time measurement register the values that are accepted.
    ``cache_partitions`` are the states of the cache's partition that are accepted (``claims.CACHE_PARTITIONS``).
    ``require_revocation`` refuses a certificate for which there is no revocation list, or none that is fresh:
    before its next update, and not older than ``revocation_age`` where that is given.
    """

    identifier: str = ""
    profiles: frozenset[str] = frozenset(PROFILES)
    allow_debug: bool = False
    allow_insecure: bool = False
    lifecycles: frozenset[int] = frozenset({SECURED})
    platforms: frozenset[bytes] | None = None
    allow_extensions: bool = False
    measurements: frozenset[bytes] | None = frozenset()
    owners: frozenset[bytes] | None = None
    registers: tuple[Register, Register, Register, Register] = (None, None, None, None)
    classes: frozenset[str] = frozenset(DOMAIN_CLASSES)
    hash_algorithm: str = "sha-256"
    cache_partitions: frozenset[str] = frozenset(CACHE_PARTITIONS)
    key_storage: frozenset[str] | None = None
    require_revocation: bool = False
    revocation_age: timedelta | None = None

    @classmethod
    def parse(cls, data: bytes) -> Policy:
        """Read a policy file. Raises ``ConfigError``, also for every key that is not known."""
        if len(data) > MAX_POLICY:
            raise ConfigError(f"the policy is longer than {MAX_POLICY} bytes")
        try:
            table = tomllib.loads(data.decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(f"the policy is not TOML: {str(error)[:200]}", hint="docs/verification.md") from None
        return cls.from_table(table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Policy:
        """The policy that ``table`` of a file, or of a JSON object, describes. Raises ``ConfigError``."""
        top = _Table(table, "")
        if top.take("schema", str, None) != SCHEMA:
            raise ConfigError(f"the policy is not of schema {SCHEMA}", hint=f'begin it with schema = "{SCHEMA}"')
        identifier = top.take("id", str, "")
        if len(identifier) > 256 or not identifier.isprintable():
            raise ConfigError("policy: id is not a short printable text")
        platform, realm = top.table("platform"), top.table("realm")
        top.finish()
        policy = cls(
            identifier=identifier,
            profiles=platform.words("profiles", PROFILES, PROFILES),
            allow_insecure=platform.take("insecure", bool, False),
            lifecycles=frozenset(
                _LIFECYCLE_WORDS[word] for word in platform.words("lifecycles", _LIFECYCLE_WORDS, ("secured",))
            ),
            platforms=platform.values("identities", (33,), None),
            allow_extensions=platform.take("extensions", bool, False),
            require_revocation=platform.word("revocation", ("check", "require"), "check") == "require",
            revocation_age=platform.days("revocation-days"),
            allow_debug=realm.take("debug", bool, False),
            classes=realm.words("classes", DOMAIN_CLASSES, DOMAIN_CLASSES),
            hash_algorithm=realm.word("hash", tuple(HASH_BYTES), "sha-256"),
            measurements=realm.values("measurements", tuple(HASH_BYTES.values()), frozenset()),
            owners=realm.values("owners", (64,), None),
            registers=_registers(realm.table("registers")),
            cache_partitions=_CACHE[realm.word("cache", tuple(_CACHE), ANY)],
            key_storage=realm.texts("key-storage"),
        )
        platform.finish()
        realm.finish()
        policy.check()
        return policy

    def check(self) -> None:
        """Raises ``ConfigError`` for a policy that would accept everybody's Realm."""
        if self.measurements is None and self.owners is None:
            raise ConfigError(
                "the policy accepts any Realm of any owner", hint="name measurements, or owners, or both"
            )

    def table(self) -> dict[str, Any]:
        """JSON-able; ``from_table`` gives an equal policy again. Raises ``ConfigError`` for what no file can say."""
        words = {number: word for word, number in _LIFECYCLE_WORDS.items()}
        caches = {accepted: word for word, accepted in _CACHE.items()}
        if not self.lifecycles <= words.keys() or self.cache_partitions not in caches:
            raise ConfigError("the policy accepts states that a policy file has no words for")
        platform: dict[str, Any] = {
            "profiles": sorted(self.profiles),
            "insecure": self.allow_insecure,
            "lifecycles": sorted(words[state] for state in self.lifecycles),
            "identities": _spelled(self.platforms),
            "extensions": self.allow_extensions,
            "revocation": "require" if self.require_revocation else "check",
        }
        if self.revocation_age is not None:
            platform["revocation-days"] = self.revocation_age.days
        realm = {
            "debug": self.allow_debug,
            "classes": sorted(self.classes),
            "hash": self.hash_algorithm,
            "measurements": _spelled(self.measurements),
            "owners": _spelled(self.owners),
            "registers": {str(index): _spelled(values) for index, values in enumerate(self.registers)},
            "cache": caches[self.cache_partitions],
            "key-storage": ANY if self.key_storage is None else sorted(self.key_storage),
        }
        return {"schema": SCHEMA, "id": self.identifier, "platform": platform, "realm": realm}

    @property
    def name(self) -> str:
        """Its identifier, or one made of its contents: what an attestation result names it by."""
        if self.identifier:
            return self.identifier
        return "urn:sha-256:" + self.digest().hex()

    def digest(self) -> bytes:
        """SHA-256 of all that it says, the same for two files that say the same."""
        text = json.dumps(self.table(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()

    def accepts_lifecycle(self, lifecycle: int) -> bool:
        return lifecycle in self.lifecycles or (self.allow_insecure and lifecycle == NOT_PROVISIONED)


_CACHE: Final = {ANY: frozenset(CACHE_PARTITIONS), **CACHE_DEMANDS}


def lifecycle_name(lifecycle: int) -> str:
    """The state's name; the lower byte is the implementation's."""
    return LIFECYCLES.get(lifecycle >> 8, "invalid")


def _registers(table: _Table) -> tuple[Register, Register, Register, Register]:
    sizes = tuple(HASH_BYTES.values())
    first, second, third, fourth = (table.values(str(index), sizes, None) for index in range(REGISTERS))
    table.finish()
    return first, second, third, fourth


def _spelled(values: frozenset[bytes] | None) -> str | list[str]:
    return ANY if values is None else sorted(value.hex() for value in values)


class _Table:
    """Typed access to one table; ``finish`` refuses keys that nobody asked for."""

    def __init__(self, table: Any, name: str) -> None:
        if not isinstance(table, Mapping):
            raise ConfigError(f"policy: {name} is not a table")
        self._table = table
        self._name = name
        self._left = set(table)

    def _key(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def take(self, key: str, kind: type[Any], default: Any) -> Any:
        self._left.discard(key)
        value = self._table.get(key, default)
        if type(value) is not kind and (key in self._table or default is not None):
            raise ConfigError(f"policy: {self._key(key)} is not a {kind.__name__}")
        return value

    def table(self, key: str) -> _Table:
        self._left.discard(key)
        return _Table(self._table.get(key, {}), self._key(key))

    def word(self, key: str, known: Iterable[str], default: str) -> str:
        word = self.take(key, str, default)
        if word not in known:
            raise ConfigError(f"policy: {self._key(key)} is one of {', '.join(known)}")
        return str(word)

    def words(self, key: str, known: Iterable[str], default: Iterable[str]) -> frozenset[str]:
        words = self._list(key, str) if key in self._table else list(default)
        if not words or not set(words) <= set(known):
            raise ConfigError(f"policy: {self._key(key)} is a list of some of {', '.join(known)}")
        return frozenset(words)

    def texts(self, key: str) -> frozenset[str] | None:
        """A list of short texts; "any" or nothing for any."""
        if self._is_any(key, True):
            return None
        texts = self._list(key, str)
        if not all(1 <= len(text) <= 64 and text.isascii() and text.isprintable() for text in texts):
            raise ConfigError(f"policy: {self._key(key)} is a list of short printable texts")
        return frozenset(texts)

    def values(
        self, key: str, sizes: tuple[int, ...], default: frozenset[bytes] | None
    ) -> frozenset[bytes] | None:
        """A list of byte strings in hexadecimal, of one of ``sizes``; "any" for any."""
        if self._is_any(key, default is None):
            return None
        if key not in self._table:
            return default
        return frozenset(self._value(key, text, sizes) for text in self._list(key, str))

    def days(self, key: str) -> timedelta | None:
        if key not in self._table:
            return None
        days = self.take(key, int, None)
        if not 1 <= days <= 3650:
            raise ConfigError(f"policy: {self._key(key)} is 1 to 3650")
        return timedelta(days=days)

    def finish(self) -> None:
        if self._left:
            raise ConfigError(f"policy: {self._key(min(self._left))[:80]!a} is not known", hint="docs/verification.md")

    def _is_any(self, key: str, by_default: bool) -> bool:
        self._left.discard(key)
        return self._table[key] == ANY if key in self._table else by_default

    def _list(self, key: str, kind: type[Any]) -> list[Any]:
        self._left.discard(key)
        values = self._table.get(key)
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise ConfigError(f"policy: {self._key(key)} is not a list of texts")
        return values

    def _value(self, key: str, text: str, sizes: tuple[int, ...]) -> bytes:
        try:
            value = bytes.fromhex(text)
        except ValueError:
            value = b""
        if len(value) not in sizes:
            lengths = " or ".join(str(size) for size in sorted(set(sizes)))
            raise ConfigError(f"policy: {self._key(key)}: {text[:40]!a} is not {lengths} bytes in hexadecimal")
        return value
