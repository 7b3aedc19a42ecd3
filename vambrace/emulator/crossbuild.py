"""The C core for the server's own architecture, from any machine that has the cross compiler."""

from __future__ import annotations

from pathlib import Path

from vambrace.debian import tools
from vambrace.errors import BuildError

COMPILER = "aarch64-linux-gnu-gcc"
#: Debian packages (arm64) that the sysroot holds, with all that they depend on.
SYSROOT_PACKAGES = ("libc6-dev", "libpython3-dev", "libssl-dev")
NAME = "_core.abi3.so"

_FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-fPIC", "-fvisibility=hidden"),
    *("-D_FORTIFY_SOURCE=2", "-fstack-protector-strong", "-mbranch-protection=standard"),
    *("-shared", "-s", "-Wl,-z,relro", "-Wl,-z,now", "-Wl,--as-needed"),
)


def cross_build(core_dir: Path, sysroot: Path, out: Path) -> Path:
    """Compiles ``core_dir`` into ``out``/_core.abi3.so for arm64 and returns its path.

    ``sysroot`` is a merged tree of SYSROOT_PACKAGES. The same inputs give the same bytes wherever they lie.
    Raises ToolMissing, BuildError (with the compiler's words).
    """
    core_dir, sysroot, target = core_dir.resolve(), sysroot.resolve(), out.resolve() / NAME
    headers = sorted((sysroot / "usr/include").glob("python3.*/Python.h"))
    if not headers:
        raise BuildError(
            f"{sysroot} holds no Python.h",
            hint=f"unpack {', '.join(SYSROOT_PACKAGES)} for arm64 into it",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # Names relative to core_dir: no path of this machine gets into the output.
    sources = sorted(
        str(path.relative_to(core_dir)) for part in (".", "python") for path in core_dir.glob(f"{part}/*.c")
    )
    include = f"-I{headers[-1].parent}"
    tools.run(
        [COMPILER, f"--sysroot={sysroot}", *_FLAGS, include, "-o", target, *sources, "-lcrypto"],
        cwd=core_dir,
    )
    return target
