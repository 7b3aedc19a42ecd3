"""Images: an owner's manifest becomes one bundle, measurable offline and stored in any OCI registry.

The host imports this package to read bundles only; what builds them (``manifest``, ``build``, ``base``) is
imported where it is used.
"""

from vambrace.image.bundle import Bundle, Part, UnpackedBundle, write_bundle

__all__ = ["Bundle", "Part", "UnpackedBundle", "write_bundle"]
