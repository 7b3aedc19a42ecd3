"""Container images: from what skopeo copies to a file system and an application's settings.

    source.py     a reference → the image's manifest, configuration and layers, on this machine, digests checked
    layer.py      one layer, decompressed within bounds;  tar.py: the members of its tar
    tree.py       layers one over the other → one tree, in memory; files' contents stay where they are
    settings.py   the image's configuration and that tree → what runs: command, environment, user
    image.py      all of it: a reference → an EROFS image and settings
    program.py    what a manifest wants, and such an image → the application that runs
    make.py       the other way: layers → an image, for tests and examples

Whoever made an image may be hostile. Nothing of it is ever unpacked into this machine's file system: no path of it
is opened here, and no program but skopeo and zstd reads its bytes.
"""

from vambrace.image.containers.image import ContainerImage, read_image

__all__ = ["ContainerImage", "read_image"]
