"""A manifest's file: which class it is of, and so who reads the rest of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

from vambrace.classes import REALM, domain_class
from vambrace.errors import ConfigError
from vambrace.image.manifest.attested import Manifest, read_attested
from vambrace.image.manifest.lines import Mapping
from vambrace.image.manifest.normal import NormalManifest, read_normal

_MAX_MANIFEST: Final = 1 << 20


def read_manifest(path: Path) -> Manifest | NormalManifest:
    """Read the manifest at ``path``; paths in it are relative to its folder. Raises ``ConfigError``."""
    top = Mapping(_compose(path), "the manifest")
    with top.at("class"):
        kind = domain_class(top.string("class", REALM.name))
    return read_attested(path, top, kind) if kind.attested else read_normal(path, top, kind)


def _compose(path: Path) -> yaml.Node:
    hint = "the manifest is a YAML file, see examples/patients/manifest.yaml"
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ConfigError(f"{path}: too large for a manifest", hint=hint)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint=hint) from None
    except UnicodeDecodeError:
        hint = f"{hint}; --app, --container and --vm take what a manifest would name"
        raise ConfigError(f"{path}: not UTF-8 text", hint=hint) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(f"not YAML: {error.problem}", hint=hint, line=mark.line + 1 if mark else None) from None
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError):
        # The last two: an escape or a number in it that Python has no character or integer for.
        raise ConfigError(f"{path}: not YAML", hint=hint) from None
    if node is None:
        raise ConfigError(f"{path}: the manifest is empty", hint=hint)
    return node
