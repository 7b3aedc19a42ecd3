"""vambrace: confidential VMs for the ARM servers that people already have.

The public names are imported when they are first used, so that ``import vambrace`` costs nothing: the process
of every domain imports this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vambrace.attest.owner import OwnerIdentity as Owner
    from vambrace.client.host import Host
    from vambrace.client.normal import NormalVm
    from vambrace.client.realm import Realm
    from vambrace.client.secure import SecureVm
    from vambrace.client.trust import Trust
    from vambrace.errors import VambraceError
    from vambrace.image import Bundle

__version__ = "0.1.0"
__all__ = ["Bundle", "Host", "NormalVm", "Owner", "Realm", "SecureVm", "Trust", "VambraceError", "__version__"]

_PUBLIC = {
    "Bundle": ("vambrace.image", "Bundle"),
    "Host": ("vambrace.client.host", "Host"),
    "NormalVm": ("vambrace.client.normal", "NormalVm"),
    "Owner": ("vambrace.attest.owner", "OwnerIdentity"),
    "Realm": ("vambrace.client.realm", "Realm"),
    "SecureVm": ("vambrace.client.secure", "SecureVm"),
    "Trust": ("vambrace.client.trust", "Trust"),
    "VambraceError": ("vambrace.errors", "VambraceError"),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
