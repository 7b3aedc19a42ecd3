"""A disk of a domain, by its contents."""

from __future__ import annotations

from typing import Any, Final

from vambrace.canonical import BUILD_AGAIN, Object
from vambrace.checks import check_hex, check_integer, check_name
from vambrace.classes import DomainClass
from vambrace.errors import ConfigError
from vambrace.record import Record
from vambrace.release import check_resource

MAX_DISK: Final = 1 << 40
BLOCK: Final = 4096


class Disk(Record):
    """A read-only disk: ``data_size`` bytes of EROFS, then its dm-verity tree, ``size`` bytes in all.

    Where it has a ``key``, all of that is encrypted, and this is the broker's name for the key. That of a class that is
    not measured is *plain*: any ``size`` bytes, of which the domain has a copy to write to.
    """

    name: str
    sha256: str
    size: int
    data_size: int = 0
    verity_root: str = ""
    verity_salt: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "disk")
        where = f"disk {self.name}"
        check_hex(self.sha256, 32, f"{where}: sha256")
        if self.plain:
            check_integer(self.size, BLOCK, MAX_DISK, f"{where}: size")
            if self.size % BLOCK or self.verity_root or self.verity_salt or self.key:
                raise ConfigError(f"{where}: not whole blocks without dm-verity", hint=BUILD_AGAIN)
            return
        check_hex(self.verity_root, 32, f"{where}: verity_root")
        check_hex(self.verity_salt, None, f"{where}: verity_salt")
        check_integer(self.data_size, BLOCK, MAX_DISK, f"{where}: data_size")
        check_integer(self.size, self.data_size, MAX_DISK, f"{where}: size")
        if self.data_size % BLOCK or self.size % BLOCK:
            raise ConfigError(f"{where}: sizes must be multiples of {BLOCK} bytes", hint=BUILD_AGAIN)
        if self.key != "":
            check_resource(self.key, f"{where}: key")

    @property
    def plain(self) -> bool:
        return self.data_size == 0

    @classmethod
    def read(cls, item: Object, kind: DomainClass) -> Disk:
        name, sha256, size = item.string("name"), item.string("sha256"), item.integer("size")
        if not kind.measured:
            return cls(name, sha256, size)
        root, salt = item.string("verity_root"), item.string("verity_salt")
        key = item.string("key") if "key" in item else ""
        return cls(name, sha256, size, item.integer("data_size"), root, salt, key)

    def as_object(self) -> dict[str, Any]:
        if self.plain:
            return {"name": self.name, "sha256": self.sha256, "size": self.size}
        found = self.as_dict()
        if not self.key:
            del found["key"]
        return found
