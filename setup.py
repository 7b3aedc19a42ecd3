"""Declares the one C extension; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "vambrace.pager._core",
            sources=sorted(path.as_posix() for path in Path("core").glob("*.c")),
            depends=sorted(path.as_posix() for path in Path("core").glob("*.h")),
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
