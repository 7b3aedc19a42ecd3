"""Imports point one way, from the user's side down to KVM (docs/architecture.md), and the VMM process has few."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from vambrace.emulator.hostroot import FILES, PARTS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vambrace"

#: What each part of the package may import of the others, itself aside.
LAYERS: dict[str, set[str]] = {
    "cli": {
        *("broker", "client", "verifier", "advice", "emulator", "image", "debian", "attest", "certificate", "classes"),
        *("suite", "errors"),
    },
    "client": {"advice", "image", "attest", "checks", "config", "classes", "counts", "suite", "files", "errors"},
    "broker": {"attest", "canonical", "release", "serving", "suite", "files", "errors"},
    "host": {
        *("advice", "attest", "cache", "checks", "classes", "config", "counts", "image", "jail", "machine"),
        *("measure", "partition", "release", "serving", "storage", "trustzone", "suite", "files", "errors"),
    },
    "emulator": {"debian", "attest", "suite", "files", "errors"},
    "image": {
        *("application", "cache", "debian", "measure", "machine", "checks", "config", "container", "canonical"),
        *("certificate", "classes", "release", "storage", "suite", "errors"),
    },
    "debian": {"errors"},
    "trustzone": {"attest", "suite", "errors"},
    "verifier": {"attest", "serving", "errors"},
    "serving": {"errors"},
    "attest": {"certificate", "suite", "files", "measure", "errors"},
    "jail": {"virtio", "vfio", "kvm", "errors"},
    "machine": {"jail", "measure", "virtio", "pager", "kvm", "pci", "vfio", "config", "classes", "record", "errors"},
    "partition": {"vfio", "pager", "errors"},
    "measure": {"suite", "errors"},
    "virtio": {"record", "errors"},
    "pager": {"record", "errors"},
    "kvm": {"errors"},
    "vfio": {"pci", "errors"},
    "pci": {"errors"},
    "cache": {"canonical", "record", "errors"},
    "application": {"canonical", "checks", "container", "record", "errors"},
    "container": {"canonical", "checks", "record", "errors"},
    "config": {
        *("application", "cache", "canonical", "certificate", "checks", "classes", "record", "release", "storage"),
        *("suite", "errors"),
    },
    "storage": {"canonical", "checks", "classes", "record", "release", "errors"},
    "release": {"canonical", "certificate", "checks", "record", "errors"},
    "checks": {"canonical", "errors"},
    "canonical": {"errors"},
    "classes": {"record", "errors"},
    "certificate": {"suite", "errors"},
    "advice": {"counts", "errors"},
    "files": set(),
    "counts": set(),
    "suite": {"record", "errors"},
    "record": set(),
    "errors": set(),
}
#: What only some modules of a part may import: of the machine an image needs the plan, and the daemon the names of what
#: a VMM gets; both are pure.
ONLY = {
    ("image", "machine"): {"vambrace.machine.plan"},
    ("host", "machine"): {"vambrace.machine.descriptors"},
    ("machine", "jail"): {"vambrace.jail.kinds", "vambrace.jail.entry"},
    ("jail", "virtio"): {"vambrace.virtio.block", "vambrace.virtio.net", "vambrace.virtio.vsock"},
    ("jail", "kvm"): {"vambrace.kvm.abi"},
    ("jail", "vfio"): {"vambrace.vfio.abi"},
    ("trustzone", "attest"): {"vambrace.trustzone.insecure"},
}

#: All of vambrace that a VMM process holds, and what else it must not hold: each costs memory or time at its start.
VMM = {
    *("application", "cache", "canonical", "certificate", "checks", "classes", "config", "container", "errors", "jail"),
    *("kvm", "machine", "measure", "pager", "pci", "record", "release", "storage", "suite", "vfio", "virtio"),
}
HEAVY = {
    *("aiohttp", "asyncio", "cbor2", "cryptography", "ssl", "urllib3", "websockets", "yaml"),
    *("argparse", "ctypes", "dataclasses", "inspect", "pathlib", "tempfile"),
}


def modules(folder: Path = PACKAGE) -> dict[str, Path]:
    """Every module below ``folder`` by its full name."""
    found = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imports(path: Path, *, inside: bool = True) -> frozenset[str]:
    """Full names that the file imports; without ``inside``, only those of its top level, which always happen."""
    tree = ast.parse(path.read_text())
    return frozenset(name for node in _nodes(tree, inside) for name in _names(node))


def _nodes(node: ast.AST, inside: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING" and not inside:
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not inside:
            continue
        yield child
        yield from _nodes(child, inside)


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module, "imports are absolute"
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            yield name if name in MODULES else node.module


def part(module: str) -> str:
    """``attest`` of ``vambrace.attest.cbor``; empty for ``vambrace`` itself, which only has the version and names."""
    return (module.split(".") + [""])[1] if module.startswith("vambrace.") else ""


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"vambrace"}))
def test_imports_point_down(module: str) -> None:
    ours = part(module)
    assert ours in LAYERS, f"draw {ours} in docs/architecture.md, and here"
    for name in imports(MODULES[module]):
        theirs = part(name)
        if not theirs or theirs == ours:
            continue
        assert theirs in LAYERS[ours], f"{module} imports {name}"
        if only := ONLY.get((ours, theirs)):
            assert only & {name, module}, f"{module} imports {name}"


def reachable(start: str) -> set[str]:
    found, left = set(), [start]
    while left:
        for below in LAYERS[left.pop()] - found:
            found.add(below)
            left.append(below)
    return found


def test_the_table_itself() -> None:
    """It is complete and has no circle; what a verifier needs leads neither to KVM nor to an emulated server."""
    assert {part(module) for module in MODULES} - {""} == set(LAYERS)
    for name in LAYERS:
        assert name not in reachable(name)
        assert "emulator" not in LAYERS[name] or name == "cli"
    for name in ("attest", "measure"):
        assert not reachable(name) & {"kvm", "machine", "pager", "trustzone", "host"}


def test_the_vmm_process_needs_little() -> None:
    """Also where it would be imported later, inside a function."""
    seen, left = set(), ["vambrace.machine.__main__"]
    while left:
        module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        assert part(module) in VMM, module
        for name in imports(MODULES[module]):
            top = name.partition(".")[0]
            if top == "vambrace":
                left += [name] if part(name) else []
                continue
            assert top == "fdt" or top in sys.stdlib_module_names, f"{module} imports {name}"
            if name in imports(MODULES[module], inside=False):
                assert top not in HEAVY, f"{module} imports {name}"


def test_the_vmm_process_starts_with_little() -> None:
    """What it really holds then. The finder of an editable install brings its own."""
    program = (
        "import sys; before = set(sys.modules); import vambrace.machine.__main__; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    held = done.stdout.split()
    assert not HEAVY & set(held)
    assert {part(name) for name in held if name.startswith("vambrace.")} <= VMM


def test_the_agent_has_the_standard_library_only() -> None:
    for path in (ROOT / "guest" / "agent").rglob("*.py"):
        for name in imports(path):
            top = name.partition(".")[0]
            assert top == "vambrace_agent" or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_the_host_s_image_holds_what_the_host_imports(tmp_path: Path) -> None:
    """The emulated host gets some parts of the package only: the daemon and a VMM must start with these."""
    package = tmp_path / "vambrace"
    package.mkdir()
    for part in PARTS:
        shutil.copytree(PACKAGE / part, package / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copyfile(PACKAGE / name, package / name)
    wanted = sorted(name for name in MODULES if name.startswith(("vambrace.host.", "vambrace.machine.")))
    # Without the site's .pth files, one of which leads to the whole package.
    paths = [str(tmp_path), *(path for path in sys.path if path.endswith("site-packages"))]
    program = f"import sys; sys.path[:0] = {paths!r}; import importlib\n"
    program += f"for name in {wanted!r}: importlib.import_module(name)\n"
    program += "print(sys.modules['vambrace'].__file__)"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(package / "__init__.py")
