"""Build products, kept under the hash of everything that determines them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vambrace.errors import BuildError, NoSpace

_MORE_SPACE = "free some gigabytes there, or set XDG_CACHE_HOME to another disk"


def default_cache() -> Path:
    """The user's cache directory (XDG base directory specification)."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "vambrace"


def hash_tree(*paths: Path) -> str:
    """SHA-256 (hex) over names, modes' executable bit and contents below ``paths``, in sorted order."""
    digest = hashlib.sha256()
    for top in paths:
        files = [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file())
        for file in files:
            if "__pycache__" in file.parts or file.suffix in {".pyc", ".so", ".o"}:
                continue
            name = file.relative_to(top.parent).as_posix()
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{name}\0{os.access(file, os.X_OK)}\0{content}\n".encode())
    return digest.hexdigest()


class Cache:
    """A directory of products: ``<root>/products/<name>-<hash of inputs>/``."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_cache()
        self.products = self.root / "products"
        try:
            self.products.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BuildError(
                f"the cache {self.root} cannot be made: {error.strerror}", hint="set XDG_CACHE_HOME to another folder"
            ) from error

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold ``name`` against other processes that share this cache."""
        with (self.root / f"{name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def build(self, name: str, inputs: Mapping[str, str], builder: Callable[[Path], None]) -> Path:
        """The directory of product ``name`` for ``inputs``, built by ``builder(directory)`` if it is not there.

        A product appears whole or not at all. Raises BuildError.
        """
        key = hashlib.sha256(json.dumps({"name": name, **inputs}, sort_keys=True).encode()).hexdigest()[:24]
        product = self.products / f"{name}-{key}"
        with self.lock(name):
            if product.is_dir():
                return product
            work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.products))
            # Whoever builds: a product's permissions are part of it.
            mask = os.umask(0o022)
            try:
                builder(work)
                (work / "inputs.json").write_text(json.dumps(dict(inputs), indent=1, sort_keys=True) + "\n")
                work.chmod(0o755)
                work.rename(product)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise NoSpace(str(self.root), name, hint=_MORE_SPACE) from error
                raise
            except NoSpace as error:
                raise NoSpace(str(self.root), name, hint=_MORE_SPACE) from error
            finally:
                os.umask(mask)
                shutil.rmtree(work, ignore_errors=True)
        return product
