"""resctrl as real files, with what the kernel does and refuses when they are written (Linux, resctrl.rst)."""

from __future__ import annotations

import shutil
from pathlib import Path

from vambrace.errors import PartitionError
from vambrace.partition.ways import Tree


class FakeResctrl(Tree):
    """One L3 cache for each of ``caches``; masks are contiguous, exclusive groups exclusive, groups few."""

    def __init__(self, root: Path, *, mask: int = 0xFFF, least: int = 2, closids: int = 4, caches: int = 2) -> None:
        super().__init__(root)
        self.mask, self.least, self.closids = mask, least, closids
        self.caches = range(caches)
        self.fail: str | None = None  # the write to this file is refused
        info = root / "info/L3"
        info.mkdir(parents=True)
        values = {"cbm_mask": f"{mask:x}", "min_cbm_bits": least, "num_closids": closids, "shareable_bits": 0}
        for name, value in values.items():
            (info / name).write_text(f"{value}\n")
        (root / "info/last_cmd_status").write_text("ok\n")
        for folder in ("mon_groups", "mon_data"):
            (root / folder).mkdir()
        self._fill(root)

    def _fill(self, folder: Path) -> None:
        self._show(folder, dict.fromkeys(self.caches, self.mask))
        (folder / "mode").write_text("shareable\n")
        (folder / "tasks").write_text("")

    def _show(self, folder: Path, masks: dict[int, int]) -> None:
        l3 = ";".join(f"{cache}={mask:x}" for cache, mask in masks.items())
        memory = ";".join(f"{cache}=100" for cache in masks)
        (folder / "schemata").write_text(f"    MB:{memory}\n    L3:{l3}\n")

    def make(self, name: str) -> None:
        if len(self.groups()) + 1 >= self.closids:
            self._refuse(name, "out of CLOSIDs")
        super().make(name)
        self._fill(self.root / name)

    def remove(self, name: str) -> None:
        if (self.root / name).exists():
            tasks = (self.root / name / "tasks").read_text()
            with (self.root / "tasks").open("a") as file:
                file.write(tasks)
            shutil.rmtree(self.root / name)

    def write(self, name: str, text: str) -> None:
        if self.fail is not None and name.endswith(self.fail):
            self._refuse(name, "as the test wants it")
        folder = (self.root / name).parent
        match name.rpartition("/")[2]:
            case "schemata":
                resource, _, masks = text.strip().partition(":")
                new = {int(part.partition("=")[0]): int(part.partition("=")[2], 16) for part in masks.split(";")}
                assert resource == "L3" and set(new) == set(self.caches)
                for mask in new.values():
                    lowest = mask & -mask
                    if mask & ~self.mask or (mask + lowest) & mask:
                        self._refuse(name, "non-consecutive 1-bits")
                    if mask.bit_count() < self.least:
                        self._refuse(name, f"Need at least {self.least} bits in the mask")
                    if any(mask & other for group, other in self._others(folder) if self._exclusive(group)):
                        self._refuse(name, "Overlaps with exclusive group")
                self._show(folder, new)
            case "mode":
                own = self._mask_of(folder)
                if text.strip() == "exclusive" and any(own & other for _, other in self._others(folder)):
                    self._refuse(name, "Schemata overlaps")
                (folder / "mode").write_text(text)
            case "tasks":
                with (folder / "tasks").open("a") as file:
                    file.write(text)
            case _:
                super().write(name, text)

    def _others(self, folder: Path) -> list[tuple[Path, int]]:
        folders = [self.root, *(self.root / group for group in self.groups())]
        return [(other, self._mask_of(other)) for other in folders if other != folder]

    def _exclusive(self, folder: Path) -> bool:
        return (folder / "mode").read_text().strip() == "exclusive"

    def _mask_of(self, folder: Path) -> int:
        line = (folder / "schemata").read_text().splitlines()[1]
        return int(line.rpartition("=")[2], 16)

    def _refuse(self, name: str, why: str) -> None:
        (self.root / "info/last_cmd_status").write_text(f"{why}\n")
        raise PartitionError(f"resctrl: {name}: Invalid argument{self._words()}")
