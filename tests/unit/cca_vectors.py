"""Genuine tokens of Arm CCA, from the specification and from other implementations; each file names its source."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)

FOLDER = Path(__file__).resolve().parents[1] / "vectors" / "cca"
_CURVES = {"P-256": SECP256R1, "P-384": SECP384R1}


@dataclass(frozen=True)
class Vector:
    name: str
    token: bytes
    platform_key: EllipticCurvePublicKey
    expected: dict[str, Any]


def load(path: Path) -> Vector:
    value = json.loads(path.read_text())
    assert value["source"] and value["licence"]
    return Vector(path.stem, bytes.fromhex("".join(value["token"])), _key(value["platform-key"]), value["expected"])


def _key(jwk: dict[str, str]) -> EllipticCurvePublicKey:
    x, y = (int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "=="), "big") for name in "xy")
    return EllipticCurvePublicNumbers(x, y, _CURVES[jwk["crv"]]()).public_key()


VECTORS = [load(path) for path in sorted(FOLDER.glob("*.json"))]
