"""Declares the one C extension; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup


def files(pattern: str) -> list[str]:
    """The core's own, and those that make a module of it."""
    return sorted(path.as_posix() for folder in ("core", "core/python") for path in Path(folder).glob(pattern))


setup(
    ext_modules=[
        Extension(
            "vambrace.pager._core",
            sources=files("*.c"),
            depends=files("*.h"),
            libraries=["crypto"],
            # The assertions on the window's invariant stay in.
            extra_compile_args=[
                "-std=gnu11",
                "-Wall",
                "-Wextra",
                "-pthread",
                "-fvisibility=hidden",
                "-UNDEBUG",
            ],
            extra_link_args=["-pthread"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
